/**
 * The directory of a zip file whose members are stored as they are, so that each is a range of the file. For `torch.save`'s files:
 * compression, encryption and zip64 sizes are refused. Knows nothing of what the members hold; checksums are not looked at.
 * Format: PKWARE's APPNOTE.TXT, sections 4.3.7, 4.3.12 and 4.3.16. `zip-member.ts` streams one member of a wheel instead.
 */
import { CheckpointError } from '../errors.ts';
import { readExactly } from './file.ts';
import { refuseOverlaps } from './file-tensor-source.ts';

/** A member's bytes, `begin` inclusive to `end` exclusive. */
export interface StoredMember {
  readonly begin: number;
  readonly end: number;
}

/** The most members without zip64, of 128 bytes each: torch writes about 75, "archive/data/123" with its header. */
const MAX_DIRECTORY_BYTES = 8 * 2 ** 20;
/** Names are the file's own and "/data/123". */
const MAX_NAME_BYTES = 512;
const END_BYTES = 22;
const ENTRY_BYTES = 46;
const LOCAL_BYTES = 30;
const END_SIGNATURE = 0x0605_4b50;
const ENTRY_SIGNATURE = 0x0201_4b50;
const LOCAL_SIGNATURE = 0x0403_4b50;
/** What a field holds when the number is too large for it and stands in a zip64 record. */
const IN_ZIP64 = 0xffff_ffff;
/** Encrypted, strongly encrypted, directory encrypted. */
const ENCRYPTED = 0x2041;

/** Every member by name. All lie before the directory and share no byte. */
export function readStoredMembers(path: string, fd: number, fileBytes: number): ReadonlyMap<string, StoredMember> {
  const { count, start, directory } = readDirectory(path, fd, fileBytes);
  const members = new Map<string, StoredMember>();
  const extents: { name: string; begin: number; end: number }[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    const entry = readEntry(path, directory, at);
    const { name, localStart, bytes } = entry;
    if (members.has(name)) throw new CheckpointError(path, name, 'the zip file names it twice');
    const begin = readLocalHeader(path, fd, entry, start);
    // Compared before the sum is used: both are below 2^33.
    if (begin + bytes > start) throw new CheckpointError(path, name, `its ${bytes} bytes run into the zip directory`);
    members.set(name, { begin, end: begin + bytes });
    extents.push({ name, begin: localStart, end: begin + bytes });
    at = entry.next;
  }
  if (at !== directory.length) {
    throw new CheckpointError(path, 'zip directory', `has ${directory.length} bytes, its ${count} entries take ${at}`);
  }
  refuseOverlaps(path, extents);
  return members;
}

/** The end record must be the file's last bytes: a comment behind it could hold another one. */
function readDirectory(path: string, fd: number, fileBytes: number) {
  const fail = (rule: string) => new CheckpointError(path, 'zip directory', rule);
  if (fileBytes < END_BYTES) throw fail(`must be there, got a file of ${fileBytes} bytes`);
  const end = Buffer.alloc(END_BYTES);
  readExactly(path, fd, fileBytes - END_BYTES, end, 'zip directory');
  if (end.readUInt32LE(0) !== END_SIGNATURE || end.readUInt16LE(20) !== 0) {
    throw fail('must end the file, without a comment: the file is damaged, cut short, or no zip file');
  }
  const count = end.readUInt16LE(10);
  const bytes = end.readUInt32LE(12);
  const start = end.readUInt32LE(16);
  if (count === 0xffff || bytes === IN_ZIP64 || start === IN_ZIP64) throw fail(zip64Rule);
  if (end.readUInt32LE(4) !== 0 || end.readUInt16LE(8) !== count) throw fail('must not be one of several volumes');
  if (bytes > MAX_DIRECTORY_BYTES) throw fail(`must have at most ${MAX_DIRECTORY_BYTES} bytes, got ${bytes}`);
  // torch writes an empty zip64 record between the two, however small the file.
  if (start + bytes > fileBytes - END_BYTES) throw fail(`its ${bytes} bytes at ${start} run past its end record`);
  if (count * ENTRY_BYTES > bytes) throw fail(`has ${bytes} bytes, too few for ${count} entries`);
  const directory = Buffer.alloc(bytes);
  readExactly(path, fd, start, directory, 'zip directory');
  return { count, start, directory };
}

const zip64Rule = 'zip64 is not supported (files of 4 GiB and more): convert the file to safetensors';

interface Entry {
  readonly name: string;
  readonly bytes: number;
  readonly localStart: number;
  readonly nameBytes: Buffer;
  /** Where the next entry starts in the directory. */
  readonly next: number;
}

function readEntry(path: string, directory: Buffer, at: number): Entry {
  const damaged = () => new CheckpointError(path, 'zip directory', `damaged at its byte ${at}`);
  if (at + ENTRY_BYTES > directory.length || directory.readUInt32LE(at) !== ENTRY_SIGNATURE) throw damaged();
  const nameLength = directory.readUInt16LE(at + 28);
  const next = at + ENTRY_BYTES + nameLength + directory.readUInt16LE(at + 30) + directory.readUInt16LE(at + 32);
  if (next > directory.length || nameLength === 0) throw damaged();
  if (nameLength > MAX_NAME_BYTES) {
    throw new CheckpointError(path, 'zip directory', `names have at most ${MAX_NAME_BYTES} bytes, got ${nameLength}`);
  }
  const nameBytes = directory.subarray(at + ENTRY_BYTES, at + ENTRY_BYTES + nameLength);
  const name = nameBytes.toString('utf8');
  const fail = (rule: string) => new CheckpointError(path, name, rule);
  const method = directory.readUInt16LE(at + 10);
  const packedBytes = directory.readUInt32LE(at + 20);
  const bytes = directory.readUInt32LE(at + 24);
  const localStart = directory.readUInt32LE(at + 42);
  if ((directory.readUInt16LE(at + 8) & ENCRYPTED) !== 0) throw fail('is encrypted in the zip file');
  if (method !== 0) throw fail(`must be stored in the zip file as torch.save does, got compression method ${method}`);
  if (packedBytes === IN_ZIP64 || bytes === IN_ZIP64 || localStart === IN_ZIP64) throw fail(zip64Rule);
  if (packedBytes !== bytes) throw fail(`is stored, so its sizes must be equal, got ${packedBytes} and ${bytes}`);
  return { name, bytes, localStart, nameBytes, next };
}

/** Returns where the member's bytes begin. Its sizes are in the directory: torch leaves those of the local header 0. */
function readLocalHeader(path: string, fd: number, { name, nameBytes, localStart }: Entry, limit: number): number {
  const fail = (rule: string) => new CheckpointError(path, name, rule);
  if (localStart + LOCAL_BYTES + nameBytes.length > limit) throw fail('its local header is past the zip directory');
  const local = Buffer.alloc(LOCAL_BYTES + nameBytes.length);
  readExactly(path, fd, localStart, local, name);
  if (local.readUInt32LE(0) !== LOCAL_SIGNATURE) throw fail('its local header is damaged');
  const sameName = local.readUInt16LE(26) === nameBytes.length && local.subarray(LOCAL_BYTES).equals(nameBytes);
  if (!sameName || local.readUInt16LE(8) !== 0 || (local.readUInt16LE(6) & ENCRYPTED) !== 0) {
    throw fail('its local header must agree with the zip directory');
  }
  return localStart + local.length + local.readUInt16LE(28);
}
