/**
 * `pytorch_model.bin` as `torch.save` writes it since 1.6: a zip file of stored members, in which `<folder>/data.pkl` describes tensors
 * and `<folder>/data/<key>` are their storages. The pickle is read, never run (`pickle.ts`).
 */
import { closeSync } from 'node:fs';
import { CheckpointError } from '../errors.ts';
import type { TensorEntry, TensorSource, TensorType } from '../tensor/source.ts';
import { openRegularFile, readExactly } from './file.ts';
import { countElements, FileTensorSource, type PlacedTensor } from './file-tensor-source.ts';
import { MAX_PICKLE_BYTES, type PickledTensor, readStateDict, type StorageKind } from './pickle.ts';
import { readStoredMembers, type StoredMember } from './zip-directory.ts';

export interface TorchFile extends TensorSource {
  readonly fileBytes: number;
}

const ELEMENTS = {
  Float: { type: 'F32', bytes: 4 },
  Half: { type: 'F16', bytes: 2 },
  BFloat16: { type: 'BF16', bytes: 2 },
  Long: { type: 'I64', bytes: 8 },
  Bool: { type: 'BOOL', bytes: 1 },
} as const satisfies { [K in StorageKind]: { readonly type: TensorType; readonly bytes: number } };

/** Opens and checks one file; weights are read later. Dispose to close it. */
export function openTorch(path: string): TorchFile {
  const { fd, bytes: fileBytes } = openRegularFile(path);
  try {
    refuseOldFormat(path, fd, fileBytes);
    return Object.assign(new FileTensorSource(path, fd, readTensors(path, fd, fileBytes)), { fileBytes });
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** Before 1.6 the file was a row of bare pickles, each of which starts with the opcode PROTO. */
function refuseOldFormat(path: string, fd: number, fileBytes: number): void {
  const first = Buffer.alloc(1);
  if (fileBytes > 0) readExactly(path, fd, 0, first, 'file');
  if (first[0] !== 0x80) return;
  const convert = "torch.save(torch.load(file, map_location='cpu', weights_only=True), file)";
  throw new CheckpointError(path, 'file', `has the format of torch before 1.6: save it again with ${convert}`);
}

function readTensors(path: string, fd: number, fileBytes: number): readonly PlacedTensor[] {
  const members = readStoredMembers(path, fd, fileBytes);
  const folder = findFolder(path, members);
  const byteOrder = members.get(`${folder}/byteorder`);
  // Files of torch before 2.0 do not say it; they were written on little-endian machines but for rare ones.
  if (byteOrder !== undefined && readMember(path, fd, 'byteorder', byteOrder, 16).toString('latin1') !== 'little') {
    throw new CheckpointError(path, 'byteorder', 'must be "little"');
  }
  const pickle = readMember(path, fd, 'data.pkl', members.get(`${folder}/data.pkl`)!, MAX_PICKLE_BYTES);
  return Array.from(readStateDict(path, pickle), ([name, tensor]) => {
    if (name === '') throw new CheckpointError(path, 'data.pkl', 'tensor names must not be empty');
    return place(path, name, tensor, members.get(`${folder}/data/${tensor.storage.key}`));
  });
}

/** The folder has the name the file was saved under. */
function findFolder(path: string, members: ReadonlyMap<string, StoredMember>): string {
  const found = [...members.keys()].filter((name) => /^[^/]+\/data\.pkl$/.test(name));
  if (found.length === 1) return found[0]!.slice(0, -'/data.pkl'.length);
  throw new CheckpointError(path, 'data.pkl', `must be there once, got ${found.length}: is this a file of torch.save?`);
}

function readMember(path: string, fd: number, name: string, { begin, end }: StoredMember, maxBytes: number): Buffer {
  if (end - begin > maxBytes) {
    throw new CheckpointError(path, name, `must have at most ${maxBytes} bytes, got ${end - begin}`);
  }
  const bytes = Buffer.alloc(end - begin);
  readExactly(path, fd, begin, bytes, name);
  return bytes;
}

/** Tensors may share a storage: tied weights do. */
function place(path: string, name: string, tensor: PickledTensor, member: StoredMember | undefined): PlacedTensor {
  const { storage, offset, shape, strides } = tensor;
  const { type, bytes } = ELEMENTS[storage.kind];
  const fail = (rule: string) => new CheckpointError(path, name, rule);
  if (member === undefined) throw fail(`its storage "${storage.key.slice(0, 20)}" is missing from the file`);
  if (storage.elements * bytes !== member.end - member.begin) {
    const rule = `its storage of ${storage.elements} ${type} must be as long as its ${member.end - member.begin} bytes`;
    throw fail(rule);
  }
  const elements = countElements(path, name, shape);
  if (offset < 0 || offset + elements > storage.elements) {
    throw fail(`elements ${offset} to ${offset + elements} are outside its storage of ${storage.elements}`);
  }
  if (!isContiguous(shape, strides)) {
    const rule = `must be contiguous, got shape [${shape.join(', ')}] with strides [${strides.join(', ')}]`;
    throw fail(`${rule}: save it after .contiguous()`);
  }
  const entry: TensorEntry = { name, type, shape, byteLength: elements * bytes };
  return { entry, offset: member.begin + offset * bytes };
}

/** Row-major without gaps. The stride of a dimension of size 1 leads nowhere, and torch writes anything there. */
function isContiguous(shape: readonly number[], strides: readonly number[]): boolean {
  let stride = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] !== 1 && strides[i] !== stride) return false;
    stride *= shape[i]!;
  }
  return strides.length === shape.length;
}
