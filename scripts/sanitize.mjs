// npm run test:sanitize: the kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer. An access outside an array, or
// arithmetic that C++ does not define, ends the test process. For Linux with g++.
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { buildVariant, fail, KERNEL_TESTS, testVariant } from './addon-variant.mjs';

const sanitizers = ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'];

// The runtime must be there before node's first allocation: it is loaded in front of everything.
const runtime = execFileSync('g++', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim();
if (!existsSync(runtime)) fail('test:sanitize: g++ has no libasan.so (Debian: it comes with libgcc-12-dev or later)');

const addon = buildVariant('sanitize', {
  // Without __linux__ addon.cc takes memory from the C++ library, whose ends are watched, not in whole pages from the system.
  flags: [...sanitizers, '-g', '-O1', '-fno-omit-frame-pointer', '-U__linux__'],
  linkFlags: sanitizers,
});
// Whether memory is mapped lazily is the system's doing, which this variant does without.
testVariant(addon, [...KERNEL_TESTS, '--exclude', 'test/kernels/lazy-memory.test.ts'], {
  LD_PRELOAD: runtime,
  ASAN_OPTIONS: 'detect_leaks=0', // V8 ends without giving anything back
  UBSAN_OPTIONS: 'print_stacktrace=1',
});
