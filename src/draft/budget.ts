/**
 * How much drafting pays on this machine and this text. A round emits one token and the accepted ones, and takes the drafter's forwards and
 * one forward of the target. What shall be large is the ratio of the two over many rounds, R tokens a millisecond; the choices that make it
 * largest are those that make tokens - R x milliseconds largest in every round (Dinkelbach 1967, On nonlinear fractional programming). So
 * time has a price, R, the rate reached lately and never less than plain decoding's: a node is worth its chance to stand, and costs what a
 * row more of the target's forward takes; another forward of the drafter is worth what its guesses will be.
 *
 * Where rounds with drafts lose against plain ones, the budget pauses drafting, tries a few rounds now and then, and pauses longer each
 * time that they lose again.
 */
import { Calibration } from './calibration.ts';
import { type ForwardCost, MOST_ROWS, PLAIN_LOOK, type TreeCosts } from './costs.ts';
import { Trust } from './trust.ts';

/** Nodes of the largest tree, root included: the largest size whose cost is measured. */
export const MOST_NODES = MOST_ROWS;
/** Rounds over which the rate is taken: long enough for a steady price, short enough to follow a text. */
const RATE_ROUNDS = 32;
/** Rounds over which drafting is judged. */
const TRIAL_ROUNDS = 16;
/** Rounds before it is judged at all. */
const FEWEST_TRIALS = 6;
/** Tokens that drafting may be expected to lose before that. */
const MOST_LOST = 2;
/** Tokens a round that drafting may be expected to lose: below this, differences are those of chance and of the clock. */
const TOLERANCE = 0.01;
/** Drafts that take less cost nothing. */
const NEGLIGIBLE_MS = 1e-6;
/** A pause shows what plain decoding takes, too. */
const SHORTEST_PAUSE = PLAIN_LOOK;
/**
 * Where drafting goes on and on, nothing is seen of plain decoding, to which it is compared: now and then a few rounds are plain. They lose what
 * drafting gains, so the less it gains the cheaper is a look, and the more depends on it: looks may cost this share of the time.
 */
const LOOK_SHARE = 0.01;
/** Forwards of the target between looks, at least and at most. */
const PLAIN_KNOWN_FOR = [64, 1024] as const;
/**
 * What was measured too dear at load would never be tried, and so never be known better: one round with drafts in so many takes sizes that are
 * not known yet for what they may cost at best.
 */
const HOPE_EVERY = 8;
/** A trial costs about a plain round; in 256 that is nothing. */
const LONGEST_PAUSE = 256;

export class TreeBudget {
  /** Shared by all budgets of an engine. */
  readonly target: ForwardCost;
  /** Shared by those whose drafters run the same model. */
  readonly draft: ForwardCost;
  readonly calibration = new Calibration();
  /** In the chances of a whole tree. */
  readonly #trust = new Trust();
  /** Rounds so far. */
  rounds = 0;
  /** Milliseconds that the drafter's forwards took in a round with drafts, mean of all; none where another source's guesses were all. */
  draftMs = 0;

  // For reports. What all rounds should have taken, and what plain decoding should have for as many tokens; the drafter in the round that is drafted.
  #expectedMs = 0;
  #plainTotalMs = 0;
  #draftMs = 0;
  // Of rounds with drafts: accepted guesses that the best tree of each size promised (mean), those of the chosen trees, and those that came.
  readonly #promised = new Float64Array(MOST_NODES + 1);
  #promise = 0; // of the tree chosen last
  #chosen = false; // whether that was in this round
  #promisedByChosen = 0;
  #accepted = 0;

  /** Tokens before the round's root. */
  #context = 0;
  // Sums that fade with RATE_ROUNDS: the time is counted in plain rounds, for texts of any length.
  #tokens: number;
  #plainRoundsWorth: number;
  // Of rounds with drafts: tokens that they were expected to win over plain decoding in the same time, and rounds; fading with TRIAL_ROUNDS.
  #won = 0;
  #trials = 0;
  #trialRounds = 0; // since drafting began, or began again
  #pause = SHORTEST_PAUSE;
  #plainRounds = 0;
  #promises = 0; // rounds with drafts

  constructor({ target, draft }: TreeCosts) {
    this.target = target;
    this.draft = draft;
    // A few plain rounds: until something better is reached, time is worth what plain decoding makes of it.
    this.#tokens = 4;
    this.#plainRoundsWorth = 4;
  }

  /** Another text than before. */
  beginText(): void {
    this.#trust.beginText();
  }

  /** A round begins. @param context tokens before its root. */
  begin(context: number): void {
    this.#context = context;
  }

  /** Milliseconds of the target's forward in this round, if its tree has so many nodes. */
  forwardMs(nodes: number): number {
    return this.target.at(nodes, this.#context);
  }

  /** Milliseconds of a round of plain decoding, were it this far. */
  get plainMs(): number {
    return this.target.plain(this.#context);
  }

  /** What a millisecond is worth, in tokens. */
  get price(): number {
    return Math.max(this.#tokens / this.#plainRoundsWorth, 1) / this.plainMs;
  }

  /**
   * Over plain decoding, of text like that decoded so far: the time that plain forwards should take for its tokens, over the time that its
   * forwards should take, drafter's and target's. All rounds count, those without drafts too; tokens count as they came, forwards as what they
   * were known to cost when their tree was chosen. So it leaves out what else a round takes, and interruptions.
   */
  get expectedSpeedup(): number {
    return this.#expectedMs === 0 ? 1 : this.#plainTotalMs / this.#expectedMs;
  }

  /**
   * Tokens of a round whose tree has so many nodes, bonus included, mean of the rounds with drafts: what its candidates promised, times the
   * share that came of what the chosen trees promised. Promises alone are too high: what looks best is partly what is overrated.
   */
  tokensOf(nodes: number): number {
    return 1 + (this.#promisedByChosen === 0 ? 0 : (this.#promised[nodes]! * this.#accepted) / this.#promisedByChosen);
  }

  /** Whether the drafter takes no time: then there is nothing to be saved by pauses, only rows of the target. */
  get isFree(): boolean {
    return this.draft.at(1) < NEGLIGIBLE_MS;
  }

  /** Whether the next round shall have drafts; asked once a round. */
  wantsDrafts(): boolean {
    if (this.#plainRounds === 0 && !this.isFree && this.target.sincePlain > this.#plainKnownFor)
      this.#plainRounds = PLAIN_LOOK;
    if (this.#plainRounds === 0) return true;
    this.#plainRounds--;
    return false;
  }

  get #plainKnownFor(): number {
    const [least, most] = PLAIN_KNOWN_FOR;
    if (this.rounds < RATE_ROUNDS) return most; // what drafting gains is not known yet
    const gain = this.#tokens / this.#plainRoundsWorth - 1;
    return Math.min(Math.max((PLAIN_LOOK * gain) / LOOK_SHARE, least), most);
  }

  /**
   * Tokens that the best tree is worth, less what it costs, if looking at `expanded` nodes of `frontier` finds after each a guess that
   * stands with the chance `worth`. @param draftMs of the drafter, for looking.
   */
  netWorth(
    reach: Float64Array,
    order: Int32Array,
    count: number,
    frontier: Int32Array,
    expanded: number,
    worth: number,
    draftMs: number,
  ): number {
    const { price } = this;
    const trust = this.#trust.share;
    let most = -price * this.forwardMs(1);
    let drafts = 0;
    let known = 0;
    let hoped = 0;
    for (let nodes = 2; nodes <= Math.min(count + expanded + 1, MOST_NODES); nodes++) {
      const next = known < count ? reach[order[known]!]! : 0;
      const hope = hoped < expanded ? reach[frontier[hoped]!]! * worth : 0;
      if (next >= hope) known++;
      else hoped++;
      drafts += trust * Math.max(next, hope);
      most = Math.max(most, drafts - price * this.forwardMs(nodes));
    }
    return most - price * draftMs;
  }

  /** Nodes, root included, of the tree worth most. @param reach chances to stand of `count` candidates, likeliest first. */
  treeSize(reach: Float64Array, order: Int32Array, count: number): number {
    const { price } = this;
    const trust = this.#trust.share;
    const promised = this.#promised;
    let size = 1;
    let forwardMs = this.forwardMs(1);
    let most = -price * forwardMs;
    let drafts = 0;
    this.#promises++;
    this.#chosen = true;
    const hopes = this.#hopes;
    this.#promise = 0;
    for (let nodes = 2; nodes <= MOST_NODES; nodes++) {
      if (nodes <= count + 1) drafts += reach[order[nodes - 2]!]!;
      promised[nodes] = promised[nodes]! + (drafts - promised[nodes]!) / this.#promises;
      forwardMs = hopes ? this.target.hoped(nodes, this.#context, forwardMs) : this.forwardMs(nodes);
      const worth = trust * drafts - price * forwardMs;
      if (nodes > count + 1 || worth <= most) continue;
      most = worth;
      size = nodes;
      this.#promise = drafts;
    }
    return size;
  }

  /** Whether this round's tree is chosen by what sizes may cost at best. */
  get #hopes(): boolean {
    return this.#chosen && this.#promises % HOPE_EVERY === 0;
  }

  /** A forward of the drafter is over. @returns the milliseconds as they are believed. */
  learnDraft(rows: number, ms: number): number {
    this.#draftMs += this.draft.at(rows);
    return this.draft.learn(rows, ms);
  }

  /**
   * A round is over.
   * @param tokens it emitted. @param forwardMs of the target over the tree's `nodes`. @param draftMs of the drafter's forwards; undefined where
   * it was not asked. @param accepted of the nodes that `treeSize` chose; a drafter may have others beside them.
   */
  settle(
    tokens: number,
    nodes: number,
    forwardMs: number,
    draftMs: number | undefined,
    accepted: number = tokens - 1,
  ): void {
    const hopes = this.#hopes;
    const expectedMs = this.forwardMs(nodes) + this.#draftMs;
    const expectedTokens = 1 + (this.#chosen ? this.#trust.share * this.#promise : 0);
    const won = expectedTokens - expectedMs / this.plainMs;
    this.#expectedMs += expectedMs;
    this.#plainTotalMs += tokens * this.plainMs;
    this.#draftMs = 0;
    this.#settlePromise(accepted, draftMs ?? 0);
    const ms = this.target.learn(nodes, forwardMs, this.#context) + (draftMs ?? 0);
    this.rounds++;
    this.#tokens += tokens - this.#tokens / RATE_ROUNDS;
    this.#plainRoundsWorth += ms / this.plainMs - this.#plainRoundsWorth / RATE_ROUNDS;
    if (draftMs !== undefined && !hopes) this.#judge(won);
  }

  /**
   * By what rounds are expected to win, not by what they won: sixteen rounds' luck is larger than what drafting gains or loses where it hardly
   * pays, and what comes of promises teaches how far to trust them.
   */
  #judge(won: number): void {
    this.#won += won - this.#won / TRIAL_ROUNDS;
    this.#trials += 1 - this.#trials / TRIAL_ROUNDS;
    this.#trialRounds++;
    const judged = this.#trialRounds >= FEWEST_TRIALS;
    if (judged && this.#won >= 0) this.#pause = SHORTEST_PAUSE;
    if (this.#won < -MOST_LOST || (judged && this.#won < -TOLERANCE * this.#trials)) this.#stop();
  }

  /** Rounds with drafts are those in which candidates were found, whoever guessed them. */
  #settlePromise(accepted: number, draftMs: number): void {
    if (!this.#chosen) return;
    this.#chosen = false;
    this.draftMs += (draftMs - this.draftMs) / this.#promises;
    this.#promisedByChosen += this.#promise;
    this.#accepted += accepted;
    this.#trust.learn(this.#promise, accepted);
  }

  #stop(): void {
    if (this.isFree) return;
    this.#plainRounds = this.#pause;
    this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE);
    // The next trial begins anew, so that a text that has changed is not held to what was.
    this.#won = 0;
    this.#trials = 0;
    this.#trialRounds = 0;
  }
}
