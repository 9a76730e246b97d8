/** Conversations that a model writes: what they say, what is left out, and that nothing depends on the batch. */
import { afterAll, describe, expect, it } from 'vitest';
import { generate } from '../../src/decode/generate.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { ChatTemplate } from '../../src/tokenizer/chat-template.ts';
import { encodeConversation } from '../../src/train/encode-conversation.ts';
import {
  Known,
  openPrompts,
  promptText,
  Synthesis,
  type SynthesisOptions,
  type SynthesisPrompt,
  type SynthesisTask,
  type SynthesizedConversation,
} from '../../src/train/synthesize.ts';
import type { TrainingText } from '../../src/train/unroll.ts';
import { TINY_CONFIG, tinyTarget } from '../support/tiny.ts';
import { TINY, tiny, tinyData } from '../tokenizer/support.ts';

const kernels = createKernels();
/** Several tokens that end a text, so that a random model draws one now and then. */
const ends = [
  '</s>',
  '<|im_end|>',
  '<|eot_id|>',
  '<|eom_id|>',
  '<|end|>',
  '<|return|>',
  '<end_of_turn>',
  '<|endoftext|>',
];
const { tokens, tokenTypes } = tinyData();
const tokenizer = tiny({
  eosId: TINY.longControl,
  tokens: [...tokens, ...ends],
  tokenTypes: [...Array.from(tokenTypes), ...ends.map(() => 3)],
});
const target = tinyTarget(kernels, { config: { ...TINY_CONFIG, vocabSize: tokenizer.vocabSize } });
/** `<|a|>b` ends a turn. */
const template = new ChatTemplate(
  '<|a|>system:be tiny<|a|>b{% for m in messages %}<|a|>{{ m.role }}:{{ m.content }}<|a|>b{% endfor %}{% if add_generation_prompt %}<|a|>assistant:{% endif %}',
);
const model = { target, tokenizer, template };
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const options: SynthesisOptions = {
  seed: 8,
  temperatures: [0, 0.7, 1],
  maxTokens: 24,
  maxPromptTokens: 120,
  prefillRows: 16,
};
const ask = (id: string, content: string, followUps: readonly string[] = []): SynthesisPrompt => ({
  id,
  messages: [{ role: 'user', content }],
  followUps,
});
const prompts = Array.from({ length: 30 }, (_, i) => ask(`p${i}`, `say ${'abc '.repeat(i % 7)}${i}`));

interface Ran {
  readonly conversations: readonly SynthesizedConversation[];
  readonly texts: readonly TrainingText[];
  readonly synthesis: Synthesis;
}

function run(
  task: SynthesisTask,
  settings: {
    readonly batch?: number;
    readonly options?: Partial<SynthesisOptions>;
    readonly known?: Known;
    /** Conversations after which the run is broken off. */
    readonly until?: number;
  } = {},
): Ran {
  const { batch = 4, known = new Known(), until = Number.POSITIVE_INFINITY } = settings;
  const synthesis = new Synthesis(model, task, { ...options, ...settings.options }, known);
  using many = target.createCache(batch, 200);
  using alone = target.createCache(1, 200);
  const conversations: SynthesizedConversation[] = [];
  const texts: TrainingText[] = [];
  for (const step of synthesis.run({ batch: many, alone }, 0.1)) {
    conversations.push(...step.conversations);
    texts.push(...step.texts);
    if (conversations.length >= until) break;
  }
  return { conversations, texts, synthesis };
}

const byId = (conversations: readonly SynthesizedConversation[]): SynthesizedConversation[] =>
  [...conversations].sort((a, b) => a.id.localeCompare(b.id));
const answers = (these: readonly SynthesisPrompt[]): SynthesisTask => ({ kind: 'answer', prompts: these });

describe('answers', () => {
  const { conversations, synthesis } = run(answers(prompts));

  it('each prompt is asked once, and what is told of its answer is so', () => {
    expect(conversations.length + synthesis.counts.empty).toBe(prompts.length);
    expect(conversations.length).toBeGreaterThan(20);
    expect(synthesis.counts.conversations).toBe(conversations.length);
    for (const { id, messages, finished, promptTokens, newTokens } of conversations) {
      const asked = prompts.find((prompt) => prompt.id === id)!.messages;
      expect(messages.slice(0, -1)).toEqual(asked);
      const answer = messages.at(-1)!;
      expect(answer.role).toBe('assistant');
      expect(promptTokens).toBe(template.encode(tokenizer, asked, { addGenerationPrompt: true }).length);
      expect(newTokens).toBeLessThanOrEqual(options.maxTokens);
      if (!finished) expect(newTokens).toBe(options.maxTokens);
    }
    expect(new Set(conversations.map(({ temperature }) => temperature))).toEqual(new Set([0, 0.7, 1]));
  });

  it.each([1, 2, 9, 30])('are the same in a batch of %i', (batch) => {
    expect(byId(run(answers(prompts), { batch }).conversations)).toEqual(byId(conversations));
  });

  it('are the same for fewer prompts in another order, and others for another seed', () => {
    const few = [prompts[9]!, prompts[3]!, prompts[20]!];
    const ids = few.map(({ id }) => id);
    const expected = byId(conversations.filter(({ id }) => ids.includes(id)));
    expect(expected.length).toBeGreaterThan(1);
    expect(byId(run(answers(few)).conversations)).toEqual(expected);
    expect(byId(run(answers(few), { options: { seed: 9 } }).conversations)).not.toEqual(expected);
  });

  it('a run that was broken off is gone on with from what it wrote', () => {
    const first = run(answers(prompts), { until: 11 }).conversations;
    expect(first.length).toBeLessThan(conversations.length);
    const known = new Known();
    for (const { id, messages } of first) known.add(id, promptText(messages));
    const open = openPrompts(prompts, known, options);
    expect(open.prompts).toHaveLength(prompts.length - first.length);
    const second = run(answers(open.prompts), { known }).conversations;
    expect(byId([...first, ...second])).toEqual(byId(conversations));
  });

  it('at temperature 0 are the target’s likeliest tokens', () => {
    const { id, messages, newTokens } = conversations.find(({ temperature }) => temperature === 0)!;
    const promptIds = [...template.encode(tokenizer, messages.slice(0, -1), { addGenerationPrompt: true })];
    using cache = target.createCache(1, 200);
    const ids: number[] = [];
    const greedy = { maxTokens: options.maxTokens, endTokens: tokenizer.endTokens };
    for (const event of generate(target, new NoDrafter(), cache, promptIds, greedy))
      if (event.type === 'round') ids.push(...event.tokens);
    expect([id, tokenizer.decode(ids), ids.length]).toEqual([id, messages.at(-1)!.content, newTokens]);
  });
});

describe('conversations of several turns', () => {
  const asked = Array.from({ length: 20 }, (_, i) => ask(`t${i}`, `first ${i}`, ['second', 'third']));
  const longer = { maxTokens: 30, maxPromptTokens: 150 };
  const { conversations } = run(answers(asked), { options: longer });

  it('go on after an answer that came to its end; one that did not is the last', () => {
    const lengths = conversations.map(({ messages, finished }) => [messages.length, finished]);
    expect(lengths).toContainEqual([4, false]);
    expect(lengths.some(([length]) => length === 6)).toBe(true);
    for (const { messages, finished } of conversations) {
      expect(messages.map(({ role }) => role)).toEqual(messages.map((_, i) => (i % 2 === 0 ? 'user' : 'assistant')));
      const said = messages.filter(({ role }) => role === 'user').map(({ content }) => content);
      expect(said.slice(1)).toEqual(['second', 'third'].slice(0, said.length - 1));
      if (said.length < 3 && finished) {
        const next = [...messages, { role: 'user', content: said.length === 1 ? 'second' : 'third' }];
        const tokens = template.encode(tokenizer, next, { addGenerationPrompt: true }).length;
        expect(tokens).toBeGreaterThan(longer.maxPromptTokens); // there was no room for more
      }
    }
  });

  it('come with what training reads, where it is asked for: all but the last token, every answer counting', () => {
    const ran = run(answers(asked), { options: { ...longer, keepFeatures: true } });
    expect(run(answers(asked), { options: longer }).texts).toEqual([]);
    expect(ran.texts).toHaveLength(ran.conversations.length);
    let several = 0;
    for (const [i, { messages, finished }] of ran.conversations.entries()) {
      const { ids, mask, features } = ran.texts[i]!;
      const encoded = encodeConversation(
        tokenizer,
        template,
        { kind: 'chat', messages, finished },
        { maxTokens: 1000 },
      );
      // Some of what a random model writes reads otherwise than it was written.
      if (typeof encoded === 'string' || ids.some((id, at) => id !== encoded.ids[at])) continue;
      expect([...mask]).toEqual([...encoded.mask.subarray(0, ids.length)]);
      expect(features).toHaveLength(ids.length * target.config.hiddenSize);
      if (messages.length > 2) several++;
    }
    expect(several).toBeGreaterThan(0);
  });

  it('begin with the answers of a single turn, which are counted too', () => {
    const single = run(answers(asked.map((prompt) => ({ ...prompt, followUps: [] }))), { options: longer });
    for (const conversation of conversations) {
      const { id, messages, promptTokens, newTokens } = conversation;
      const first = single.conversations.find((other) => other.id === id)!;
      expect(messages.slice(0, 2)).toEqual(first.messages);
      if (!first.finished) expect(conversation).toEqual(first);
      if (messages.length !== 4) continue;
      const read = template.encode(tokenizer, messages.slice(0, 3), { addGenerationPrompt: true }).length;
      expect(promptTokens).toBe(read - first.newTokens);
      expect(newTokens).toBeGreaterThan(first.newTokens);
    }
  });

  it('are the same in another batch', () => {
    expect(byId(run(answers(asked), { options: longer, batch: 1 }).conversations)).toEqual(byId(conversations));
  });
});

describe('what is left out', () => {
  it('prompts that are too long, and those that the template does not take', () => {
    const picky = new ChatTemplate(
      `{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}${template.source}`,
    );
    const tool: SynthesisPrompt = { id: 'tool', messages: [{ role: 'tool', content: 'x' }], followUps: [] };
    const task = answers([ask('long', 'x'.repeat(121)), tool, prompts[4]!]);
    const synthesis = new Synthesis({ ...model, template: picky }, task, options, new Known());
    using batch = target.createCache(2, 200);
    using alone = target.createCache(1, 200);
    const written = [...synthesis.run({ batch, alone }, 0)].flatMap((step) => step.conversations);
    expect(written.map(({ id }) => id)).toEqual(['p4']);
    expect(synthesis.counts).toMatchObject({ tooLong: 1, refused: 1, conversations: 1 });
  });

  it('prompts that were asked before, but for case and white space', () => {
    const known = new Known();
    known.add('old', 'What\nis it?');
    known.add('p1', 'anything');
    const given = [
      ask('a', ' what is  IT? '),
      ask('b', 'New'),
      ask('c', 'new\n'),
      ask('d', 'new', ['and more']),
      ask('p1', 'whatever it says: it is answered'),
    ];
    const { prompts: left, answered, duplicates } = openPrompts(given, known, { seed: 1 });
    expect(left.map(({ id }) => id).sort()).toEqual(['b', 'd']);
    expect({ answered, duplicates }).toEqual({ answered: 1, duplicates: 2 });
  });

  it('prompts of which a turn is excluded, whatever is said beside it', () => {
    const known = new Known();
    known.exclude([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'One?' },
      { role: 'assistant', content: 'Three?' },
      { role: 'user', content: 'Two?' },
    ]);
    const given = [ask('a', 'one?'), ask('b', 'Three?'), ask('c', 'Four?', ['two?']), ask('d', 'Be brief.')];
    const { prompts: left, duplicates } = openPrompts(given, known, { seed: 1 });
    expect(left.map(({ id }) => id).sort()).toEqual(['b', 'd']);
    expect(duplicates).toBe(2);
  });

  it('prompts that leave no room for an answer in the context', () => {
    const most = TINY_CONFIG.contextLength;
    const { synthesis, conversations } = run(answers([ask('a', 'x'.repeat(most / 2))]), {
      options: { maxTokens: most - 20, maxPromptTokens: most },
    });
    expect(conversations).toEqual([]);
    expect(synthesis.counts.tooLong).toBe(1);
  });

  it('ids must tell prompts apart, but for the same prompt once more', () => {
    const { prompts: left, duplicates } = openPrompts([ask('a', 'x'), ask('a', 'X ')], new Known(), { seed: 1 });
    expect([left.map(({ id }) => id), duplicates]).toEqual([['a'], 1]);
    expect(() => openPrompts([ask('a', 'x'), ask('a', 'y')], new Known(), { seed: 1 })).toThrow(
      'prompts: ids must be distinct, got "a" again',
    );
  });
});

describe('the order of prompts', () => {
  const many = Array.from({ length: 400 }, (_, i) => ask(`${i < 300 ? 'x' : 'y'}${i}`, `say ${i}`));
  const ids = (known: Known, count?: number, seed = 3): string[] =>
    openPrompts(many, known, { seed, ...(count !== undefined && { count }) }).prompts.map(({ id }) => id);

  it('is drawn from the seed: the first of them are a fair mixture', () => {
    const order = ids(new Known());
    expect(order.toSorted()).toEqual(many.map(({ id }) => id).toSorted());
    expect(ids(new Known(), undefined, 4)).not.toEqual(order);
    const rare = order.slice(0, 100).filter((id) => id.startsWith('y')).length;
    expect(rare).toBeGreaterThan(10); // 25 expected, standard deviation 3.8
    expect(rare).toBeLessThan(40);
  });

  it('a count is one of all prompts, answered ones included', () => {
    const order = ids(new Known());
    const known = new Known();
    for (const id of order.slice(0, 50)) known.add(id, `say ${id.slice(1)}`);
    expect(ids(known, 80)).toEqual(order.slice(50, 80));
    expect(ids(known, 50)).toEqual([]);
  });
});

describe('invented prompts', () => {
  const task: SynthesisTask = { kind: 'invent', count: 12 };
  const roomier = { maxTokens: 60 };
  const { conversations, synthesis } = run(task, { options: roomier });

  it('are written by the model and then answered, as many as asked for', () => {
    expect(conversations).toHaveLength(12);
    expect(synthesis.counts.unfinishedPrompts).toBeGreaterThan(0); // of a random model, so this is seen to work
    for (const { id, messages } of conversations) {
      expect(id).toMatch(/^invented\/\d+$/);
      expect(messages.map(({ role }) => role)).toEqual(['user', 'assistant']);
    }
    const said = conversations.map(({ messages }) => messages[0]!.content);
    expect(new Set(said).size).toBe(12);
    expect(said.every((text) => text === text.trim() && text !== '')).toBe(true);
  });

  it('are not what is excluded', () => {
    const known = new Known();
    const first = conversations[0]!.messages[0]!;
    known.exclude([{ ...first, content: first.content.toUpperCase() }]);
    const others = run(task, { options: roomier, known });
    expect(others.conversations.map(({ messages }) => messages[0]!.content)).not.toContain(first.content);
    expect(others.conversations).toHaveLength(12);
    expect(others.synthesis.counts.duplicates).toBeGreaterThan(0);
  });

  it('continue the template’s opening of a user’s turn', () => {
    const opening = template.encodeOpening(tokenizer, 'user');
    expect(tokenizer.decode(opening, { includeSpecial: true })).toBe('<|a|>system:be tiny<|a|>b<|a|>user:');
  });

  it('say the same in another batch, and go on after a break', () => {
    const one = byId(run(task, { options: roomier, batch: 1 }).conversations);
    const both = one.filter(({ id }) => conversations.some((conversation) => conversation.id === id));
    expect(both.length).toBeGreaterThan(8); // which of them come to their end first may differ
    for (const conversation of both) expect(conversations).toContainEqual(conversation);
    const known = new Known();
    for (const { id, messages } of one.slice(0, 5)) known.add(id, promptText(messages));
    const further = run(task, { options: roomier, known }).conversations;
    expect(further).toHaveLength(7);
    expect(further.map(({ id }) => id)).not.toContain(one[0]!.id);
  });
});
