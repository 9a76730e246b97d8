import { mkdtempSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { readHeadConfig, readModelConfig } from '../../src/checkpoint/config.ts';
import { writeSafetensors } from '../../src/checkpoint/safetensors.ts';
import { CheckpointError } from '../../src/errors.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';

const SMOLLM2 = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_act: 'silu',
  hidden_size: 576,
  intermediate_size: 1536,
  max_position_embeddings: 8192,
  num_attention_heads: 9,
  num_hidden_layers: 30,
  num_key_value_heads: 3,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  rope_theta: 100_000,
  tie_word_embeddings: true,
  attention_bias: false,
  vocab_size: 49_152,
};

describe('config.json of a model', () => {
  it('is read', () => {
    expect(readModelConfig(SMOLLM2, 'config.json')).toEqual({
      architecture: 'llama',
      layers: 30,
      hiddenSize: 576,
      intermediateSize: 1536,
      heads: 9,
      kvHeads: 3,
      headDim: 64,
      vocabSize: 49_152,
      contextLength: 8192,
      ropeTheta: 100_000,
      rmsNormEps: 1e-5,
      tiedEmbeddings: true,
      rotaryLayout: 'half',
    });
  });

  it('takes the defaults of transformers for what it does not say', () => {
    const { num_key_value_heads, rope_theta, tie_word_embeddings, rms_norm_eps, ...rest } = SMOLLM2;
    expect(readModelConfig(rest, 'config.json')).toMatchObject({
      kvHeads: 9,
      ropeTheta: 10_000,
      tiedEmbeddings: false,
      rmsNormEps: 1e-6,
    });
  });

  it('may state RoPE in the newer way', () => {
    const newer = { ...SMOLLM2, rope_theta: undefined, rope_parameters: { rope_theta: 5e5, rope_type: 'default' } };
    expect(readModelConfig(newer, 'config.json').ropeTheta).toBe(5e5);
  });

  it('may have a head size of its own', () => {
    expect(readModelConfig({ ...SMOLLM2, head_dim: 128 }, 'config.json').headDim).toBe(128);
  });

  it.each<[string, unknown, string]>([
    ['another family', { ...SMOLLM2, model_type: 'qwen2' }, 'model_type: '],
    ['scaled RoPE', { ...SMOLLM2, rope_scaling: { rope_type: 'llama3', factor: 8 } }, 'rope_scaling.rope_type'],
    ['scaled RoPE, older', { ...SMOLLM2, rope_scaling: { type: 'linear', factor: 2 } }, 'got "linear"'],
    ['scaled RoPE, newer', { ...SMOLLM2, rope_parameters: { rope_type: 'yarn' } }, 'rope_parameters.rope_type'],
    [
      'RoPE scaled by a factor',
      { ...SMOLLM2, rope_scaling: { factor: 8 } },
      'rope_scaling.factor: must be 1 or absent',
    ],
    ['attention biases', { ...SMOLLM2, attention_bias: true }, 'attention_bias'],
    ['MLP biases', { ...SMOLLM2, mlp_bias: true }, 'mlp_bias'],
    ['another activation', { ...SMOLLM2, hidden_act: 'gelu' }, 'hidden_act'],
    ['quantised weights', { ...SMOLLM2, quantization_config: { bits: 4 } }, 'quantization_config'],
    ['layers as text', { ...SMOLLM2, num_hidden_layers: '30' }, 'num_hidden_layers'],
    ['half a layer', { ...SMOLLM2, num_hidden_layers: 0.5 }, 'num_hidden_layers: must be an integer from 1 to 1024'],
    ['a million layers', { ...SMOLLM2, num_hidden_layers: 1e6 }, 'got 1000000'],
    ['no hidden size', { ...SMOLLM2, hidden_size: undefined }, 'hidden_size'],
    ['a hidden size of -1', { ...SMOLLM2, hidden_size: -1 }, 'hidden_size: must be an integer'],
    ['no heads', { ...SMOLLM2, num_attention_heads: 0 }, 'num_attention_heads'],
    ['heads that do not divide', { ...SMOLLM2, num_attention_heads: 10, num_key_value_heads: 5 }, 'head_dim'],
    ['KV heads that do not group', { ...SMOLLM2, num_key_value_heads: 2 }, 'must divide the 9 query heads, got 2'],
    ['an odd head size', { ...SMOLLM2, head_dim: 63 }, 'head_dim: must be even'],
    ['a vocabulary of 2^31', { ...SMOLLM2, vocab_size: 2 ** 31 }, 'vocab_size'],
    ['a context of 2^53', { ...SMOLLM2, max_position_embeddings: 2 ** 53 }, 'max_position_embeddings'],
    [
      'a context of 1',
      { ...SMOLLM2, max_position_embeddings: 1 },
      'max_position_embeddings: must be an integer from 2',
    ],
    ['theta 0', { ...SMOLLM2, rope_theta: 0 }, 'rope_theta: must be a number from 1'],
    ['eps 0', { ...SMOLLM2, rms_norm_eps: 0 }, 'rms_norm_eps'],
    ['a list', [], 'file'],
    ['null', null, 'file'],
  ])('is refused for %s', (_, json, message) => {
    expect(() => readModelConfig(json, 'config.json')).toThrow(CheckpointError);
    expect(() => readModelConfig(json, 'config.json')).toThrow(message);
  });

  it('names the supported families', () => {
    expect(() => readModelConfig({ ...SMOLLM2, model_type: 'phi' }, 'config.json')).toThrow(/"llama".*got "phi"/);
  });
});

describe('config.json of an EAGLE head', () => {
  const head = { ...SMOLLM2, num_hidden_layers: 40, draft_vocab_size: 12_288, bias: false };

  it('is read, and its number of layers is not believed', () => {
    expect(readHeadConfig(head, 'config.json')).toEqual({
      hiddenSize: 576,
      intermediateSize: 1536,
      heads: 9,
      kvHeads: 3,
      headDim: 64,
      rmsNormEps: 1e-5,
      ropeTheta: 100_000,
      vocabSize: 49_152,
      draftVocabSize: 12_288,
    });
  });

  it('drafts from the whole vocabulary unless it says otherwise', () => {
    expect(readHeadConfig({ ...head, draft_vocab_size: undefined }, 'config.json').draftVocabSize).toBe(49_152);
  });

  it("may be a Qwen2 head's", () => {
    expect(readHeadConfig({ ...head, model_type: 'qwen2', qkv_bias: true }, 'config.json').hiddenSize).toBe(576);
  });

  it.each<[string, unknown, string]>([
    ['more draft tokens than tokens', { ...head, draft_vocab_size: 50_000 }, 'must be at most vocab_size 49152'],
    ['a head size of its own', { ...head, head_dim: 128 }, 'must be hidden_size / num_attention_heads = 64'],
    ['another layer', { ...head, model_type: 'gpt2' }, 'model_type'],
  ])('is refused for %s', (_, json, message) => {
    expect(() => readHeadConfig(json, 'config.json')).toThrow(CheckpointError);
    expect(() => readHeadConfig(json, 'config.json')).toThrow(message);
  });
});

describe('a checkpoint', () => {
  const directory = temporaryDirectory();
  function model(files: Readonly<Record<string, unknown>>): string {
    const inside = mkdtempSync(join(directory, 'model-'));
    const data = new Uint8Array(4);
    writeSafetensors(join(inside, 'model.safetensors'), [{ name: 'a', type: 'F32', shape: [1], data }]);
    for (const [name, content] of Object.entries(files)) {
      writeFileSync(join(inside, name), typeof content === 'string' ? content : JSON.stringify(content));
    }
    return inside;
  }

  it('is a directory with config.json, or the weight file in it', async () => {
    const path = model({ 'config.json': SMOLLM2 });
    for (const each of [path, join(path, 'model.safetensors')]) {
      using checkpoint = await openCheckpoint(each);
      expect(checkpoint).toMatchObject({ path: each, format: 'safetensors', tokenizer: undefined });
      expect(checkpoint.fileBytes).toBeGreaterThan(0);
      expect(checkpoint.source.entries.size).toBe(1);
    }
  });

  it.each<[string, Record<string, unknown>, string | undefined]>([
    ['no template', {}, undefined],
    ['a template in tokenizer_config.json', { 'tokenizer_config.json': { chat_template: 'one' } }, 'one'],
    [
      'named templates',
      {
        'tokenizer_config.json': { chat_template: [null, { name: 'tool_use' }, { name: 'default', template: 'two' }] },
      },
      'two',
    ],
    ['a template file', { 'tokenizer_config.json': { chat_template: 'one' }, 'chat_template.jinja': 'three' }, 'three'],
  ])('brings its tokenizer files: %s', async (_, files, chatTemplate) => {
    using checkpoint = await openCheckpoint(model({ 'config.json': SMOLLM2, 'tokenizer.json': { a: 1 }, ...files }));
    expect(checkpoint.tokenizer).toMatchObject({ kind: 'json', tokenizerJson: { a: 1 } });
    expect(checkpoint.tokenizer?.kind === 'json' && checkpoint.tokenizer.chatTemplate).toBe(chatTemplate);
  });

  it.each<[string, string, string]>([
    ['does not exist', join(directory, 'none'), 'must exist'],
    ['is of another kind', import.meta.filename, 'must be a .gguf file'],
    ['has no config', model({}), 'must exist beside the weights'],
    ['has a config that is not JSON', model({ 'config.json': '{' }), 'must be JSON'],
    ['has a huge config', model({ 'config.json': `"${'x'.repeat(5e6)}"` }), 'must be at most'],
    ['has a tokenizer that is not JSON', model({ 'config.json': SMOLLM2, 'tokenizer.json': '{' }), 'must be JSON'],
  ])('is refused when it %s', async (_, path, message) => {
    const refusal = openCheckpoint(path);
    await expect(refusal).rejects.toThrow(CheckpointError);
    await expect(refusal).rejects.toThrow(message);
  });
});
