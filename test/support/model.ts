import { resolveModel } from '../../src/checkpoint/hub.ts';

/** Path of SmolLM2-135M-Instruct as GGUF: from the cache, else fetched. A test that cannot have it fails. */
export function smolPath(): Promise<string> {
  return resolveModel('smollm2-135m-instruct');
}
