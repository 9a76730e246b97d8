/**
 * Scratch tensors, handed out in order and taken back in bulk. A forward pass asks for the same sequence of shapes every time,
 * so after the first round nothing is allocated: the k-th request finds the k-th buffer.
 */
import type { Tensor } from './tensor.ts';

class Slot implements Tensor {
  data = new Float32Array(0);
  rows = 0;
  cols = 0;
}

export class Arena {
  #slots: Slot[] = [];
  #used = 0;

  /** Uninitialised [rows, cols]; valid until a `release` to an earlier mark. */
  allocate(rows: number, cols: number): Tensor {
    let slot = this.#slots[this.#used];
    if (slot === undefined) {
      slot = new Slot();
      this.#slots.push(slot);
    }
    this.#used++;
    if (slot.data.length < rows * cols) slot.data = new Float32Array(rows * cols);
    slot.rows = rows;
    slot.cols = cols;
    return slot;
  }

  mark(): number {
    return this.#used;
  }

  /** Takes back everything allocated since `mark`. */
  release(mark: number): void {
    this.#used = mark;
  }

  /** Takes back everything allocated since `mark` except `tensor`, which stays where it is and now belongs to the mark's slot. */
  keep(mark: number, tensor: Tensor): Tensor {
    const at = this.#slots.indexOf(tensor as Slot);
    if (at < mark) throw new RangeError('keep: the tensor was not allocated after the mark');
    const moved = this.#slots[at]!;
    this.#slots[at] = this.#slots[mark]!;
    this.#slots[mark] = moved;
    this.#used = mark + 1;
    return moved;
  }

  /** Bytes held by all buffers. */
  get bytes(): number {
    return this.#slots.reduce((sum, slot) => sum + slot.data.byteLength, 0);
  }
}
