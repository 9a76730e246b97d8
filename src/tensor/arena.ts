/**
 * Scratch tensors, handed out in order and taken back in bulk. A forward pass asks for the same sequence of shapes every time,
 * so after the first round nothing is allocated: the k-th request finds the k-th buffer.
 */
import { ScratchTensor, type Tensor } from './tensor.ts';

export class Arena {
  #slots: ScratchTensor[] = [];
  #used = 0;

  /** Uninitialised [rows, cols]; valid until a `release` to an earlier mark. */
  allocate(rows: number, cols: number): Tensor {
    let slot = this.#slots[this.#used];
    if (slot === undefined) {
      slot = new ScratchTensor();
      this.#slots.push(slot);
    }
    this.#used++;
    return slot.reshape(rows, cols);
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
    const at = this.#slots.indexOf(tensor as ScratchTensor);
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
