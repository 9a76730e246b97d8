// npm run test:isa: the kernel tests on the AVX-512 table, emulated, and on every other table that this machine runs. Emulation is
// SIMDe's (test/support/simde/immintrin.h), so the source of the table is tested, not the instructions. For x64 with g++.
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { buildVariant, fail, KERNEL_TESTS, testVariant } from './addon-variant.mjs';

const probe = spawnSync('g++', ['-M', '-x', 'c++', '-'], {
  input: '#include <simde/x86/avx512.h>\n',
  encoding: 'utf8',
});
if (probe.status !== 0) {
  fail(
    'test:isa: needs g++ and the headers of SIMDe 0.7.4 or later (Debian, Ubuntu: apt-get install libsimde-dev;\n' +
      'elsewhere: unpack github.com/simd-everywhere/simde and name its directory in CPATH)',
  );
}

const addon = buildVariant('isa', {
  flags: ['-DEAGLET_EMULATED_AVX512'],
  edit(gyp) {
    const flags = /("-mavx512\w+",\s*)+/;
    if (!flags.test(gyp)) fail('test:isa: binding.gyp no longer has the flags that turn AVX-512 on');
    return gyp.replace(flags, '"-mavx2", "-I../../../test/support/simde", ');
  },
});
const tables = Object.keys(createRequire(import.meta.url)(addon).tables);
if (!tables.includes('avx512vnni')) fail(`test:isa: the add-on does not offer avx512vnni, only ${tables.join(', ')}`);
testVariant(addon, KERNEL_TESTS);
