import { afterEach, expect, it, vi } from 'vitest';
import { RequestError } from '../../src/errors.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { nativeTables } from '../../src/kernels/native.ts';

vi.mock('../../src/kernels/native.ts', async (original) => {
  const native = await original<typeof import('../../src/kernels/native.ts')>();
  return { ...native, nativeTables: vi.fn(native.nativeTables) };
});
afterEach(() => {
  vi.unstubAllEnvs();
  vi.mocked(nativeTables).mockReset();
});

it.each([0, -1, Number.NaN, 1.5, 257, 100_000])('%d threads are refused before there are any', (threads) => {
  expect(() => createKernels({ threads })).toThrow(RequestError);
  expect(() => createKernels({ threads })).toThrow(`threads: must be a whole number in 1..256, got ${threads}`);
});

it('an empty EAGLET_ISA says nothing', () => {
  vi.mocked(nativeTables).mockReturnValue(['reference']);
  vi.stubEnv('EAGLET_ISA', '');
  expect(createKernels({ threads: 1 }).isa).toBe('reference');
});

it('that the kernels are not compiled is said once', () => {
  const warning = vi.spyOn(process, 'emitWarning').mockImplementation(() => {});
  vi.stubEnv('EAGLET_ISA', undefined);
  vi.mocked(nativeTables).mockReturnValue([]);
  for (let load = 0; load < 3; load++) expect(createKernels().isa).toBe('reference');
  expect(warning).toHaveBeenCalledTimes(1);
});
