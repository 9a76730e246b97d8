/** Long work that a signal ends between two steps, so that nothing is lost. */
const SIGNALS = ['SIGINT', 'SIGTERM'] as const;

/** Ctrl-C, or a polite kill, ends the run between two steps; a second one ends it at once. */
export class Interruption implements Disposable {
  asked = false;
  readonly #ask = (): void => {
    this.asked = true;
  };

  constructor() {
    for (const signal of SIGNALS) process.once(signal, this.#ask);
  }

  [Symbol.dispose](): void {
    for (const signal of SIGNALS) process.off(signal, this.#ask);
  }
}

/** Tells that work was ended so; what was done stays. @param how in a word or two. */
export function tellStopped(how: string): void {
  process.stderr.write(`eaglet: ${how}: the same command goes on from here\n`);
  process.exitCode = 130; // as a shell tells of Ctrl-C
}
