/** Steps through rounds on a terminal. */
import { emitKeypressEvents } from 'node:readline';
import { truncate } from './terminal-text.ts';
import { drawRound, type NameToken, type Progress, paint } from './trace-rounds.ts';

type KeyInput = NodeJS.ReadableStream & { setRawMode?(raw: boolean): unknown };
type Screen = NodeJS.WritableStream & { readonly columns?: number; readonly rows?: number };

/** A screen of its own, left as it was found. */
export class Viewer {
  readonly #rounds: readonly Progress[];
  readonly #name: NameToken;
  readonly #source: string;
  readonly #input: KeyInput;
  readonly #output: Screen;
  #at = 0;
  /** Lines scrolled down. */
  #top = 0;
  /** A round's number while it is being typed. */
  #typed = '';

  constructor(
    rounds: readonly Progress[],
    name: NameToken,
    source: string,
    input: KeyInput = process.stdin,
    output: Screen = process.stdout,
  ) {
    this.#input = input;
    this.#output = output;
    this.#rounds = rounds;
    this.#name = name;
    this.#source = source;
  }

  async run(): Promise<void> {
    const input = this.#input;
    const output = this.#output;
    const draw = (): void => this.#draw();
    const leave = (): void => {
      input.setRawMode?.(false);
      input.pause();
      output.off('resize', draw);
      output.write('\u001b[?25h\u001b[?1049l');
    };
    output.write('\u001b[?1049h\u001b[?25l'); // the other screen, no cursor
    emitKeypressEvents(input);
    input.setRawMode?.(true);
    input.resume();
    output.on('resize', draw);
    process.once('exit', leave);
    try {
      this.#draw();
      await new Promise<void>((resolve, reject) => {
        input.once('end', resolve);
        input.on('keypress', (_: string | undefined, key: Key) => {
          try {
            if (this.#press(key)) resolve();
            else this.#draw();
          } catch (error) {
            reject(error);
          }
        });
      });
    } finally {
      input.removeAllListeners('keypress');
      process.off('exit', leave);
      leave();
    }
  }

  /** True to quit. */
  #press({ name, sequence = '', ctrl }: Key): boolean {
    const page = Math.max(1, (this.#output.rows ?? 24) - 4);
    if (ctrl ? name === 'c' || name === 'd' : name === 'q' || name === 'escape') return true;
    if (/^\d$/.test(sequence)) {
      this.#typed = `${this.#typed}${sequence}`.slice(-9);
      return false;
    }
    const typed = this.#typed;
    this.#typed = '';
    switch (name) {
      case 'return':
      case 'enter':
        if (typed !== '') this.#show(Number(typed) - 1);
        break;
      case 'right':
      case 'space':
      case 'n':
        this.#show(this.#at + 1);
        break;
      case 'left':
      case 'backspace':
      case 'p':
        this.#show(this.#at - 1);
        break;
      case 'home':
        this.#show(0);
        break;
      case 'end':
        this.#show(this.#rounds.length - 1);
        break;
      case 'up':
        this.#top--;
        break;
      case 'down':
        this.#top++;
        break;
      case 'pageup':
        this.#top -= page;
        break;
      case 'pagedown':
        this.#top += page;
        break;
    }
    return false;
  }

  #show(index: number): void {
    this.#at = Math.min(Math.max(index, 0), this.#rounds.length - 1);
    this.#top = 0;
  }

  #draw(): void {
    const { columns = 80, rows = 24 } = this.#output;
    const lines = drawRound(this.#rounds[this.#at]!, columns, this.#name);
    const room = Math.max(1, rows - 2);
    this.#top = Math.max(0, Math.min(this.#top, lines.length - room));
    const hidden = lines.length - this.#top - room;
    const more = [this.#top > 0 ? `↑ ${this.#top}` : '', hidden > 0 ? `↓ ${hidden} more lines` : ''];
    const where = `${this.#at + 1}/${this.#rounds.length}`;
    const jump = this.#typed === '' ? '' : `to ${this.#typed}: Enter`;
    const help = [where, jump, ...more, '← → rounds', '↑ ↓ lines', '12 Enter jumps', 'q quits', this.#source];
    const status = truncate(help.filter((part) => part !== '').join(' · '), columns);
    const screen = lines.slice(this.#top, this.#top + room).map((line) => `${line}\u001b[K\r\n`);
    this.#output.write(`\u001b[H${screen.join('')}\u001b[J\u001b[${rows};1H${paint('inverse', status)}`);
  }
}

interface Key {
  readonly name?: string;
  readonly sequence?: string;
  readonly ctrl?: boolean;
}
