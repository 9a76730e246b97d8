/** Settings that a run began with against those that it is to go on with. */

export type Settings = Readonly<Record<string, unknown>>;

/** What differs, by name, as JSON: `seed 4, got 5`; in a group of settings `training.noise 0.1, got 0`. */
export function differences(before: Settings, now: Settings, group = ''): string[] {
  const names = [...new Set([...Object.keys(before), ...Object.keys(now)])];
  return names.flatMap((name) => {
    const [was, is] = [before[name], now[name]];
    if (isGroup(was) && isGroup(is)) return differences(was, is, `${group}${name}.`);
    const [wasJson, isJson] = [JSON.stringify(was), JSON.stringify(is)];
    return wasJson === isJson ? [] : [`${group}${name} ${wasJson}, got ${isJson}`];
  });
}

function isGroup(value: unknown): value is Settings {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
