/**
 * Whether lookahead's window pays. It is an investment: its rows are paid for in the round in which it is asked, and what they bring, n-grams,
 * stands in later ones or never. So it has an account, in tokens: those accepted that were not to be had without it, less what its rows, and those
 * of its n-grams, are worth in the time they take. It is asked as long as that does not lose; where it does, it pauses, for longer each time.
 *
 * A pause is as long as what was lost is large, so whatever a row costs here, what is lost on windows is a settled share of the text.
 */

/** Rounds with the window over which it is judged. */
const TRIAL_ROUNDS = 64;
/** Rounds before it is judged at all: n-grams have to be found before they can stand, and each waits for its first token to come. */
const FEWEST_TRIALS = 32;
/** Tokens that may be lost before that. Where one round would lose more, the window is never asked. */
const MOST_LOST = 2;
/** Tokens won that are remembered: what a text won long ago must not be spent on the next one. */
const MOST_CREDIT = 2;
/** Rounds of a pause for a token lost. Two lost are 64: as much as a short answer is long. */
const SHORTEST_PAUSE = 32;
/** A plain round emits a token: in 256 one that is lost is 0.4 %. */
const LONGEST_PAUSE = 256;

export class WindowAccount {
  // Of a trial: tokens won, and rounds with the window; the former fades with TRIAL_ROUNDS.
  #won = 0;
  #rounds = 0;
  #pausedRounds = 0; // still to come
  #pause = SHORTEST_PAUSE;

  /** Whether the window shall be asked in this round. @param cost of its rows, in tokens. */
  wants(cost: number): boolean {
    if (this.#pausedRounds > 0) {
      this.#pausedRounds--;
      return false;
    }
    if (this.#won - cost >= -MOST_LOST) return true;
    if (this.#won < 0) this.#stop(); // of a window that is merely dear nothing was lost yet
    return false;
  }

  /** A round is over. @param won tokens; in pauses too, when n-grams stand that were found before. */
  settle(won: number, asked: boolean): void {
    this.#won = Math.min(this.#won + won - (asked ? this.#won / TRIAL_ROUNDS : 0), MOST_CREDIT);
    if (!asked || ++this.#rounds < FEWEST_TRIALS) return;
    if (this.#won < 0) this.#stop();
    else this.#pause = SHORTEST_PAUSE;
  }

  #stop(): void {
    this.#pausedRounds = Math.ceil(this.#pause * Math.max(0, -this.#won));
    this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE);
    // The next trial begins anew, so that a text that has changed is not held to what was.
    this.#won = 0;
    this.#rounds = 0;
  }
}
