/**
 * Takes one member of known size out of a zip file, as a stream. Enough for Python wheels: no zip64, no encryption, no
 * writing. Knows nothing of wheels. Format: PKWARE's APPNOTE.TXT, sections 4.3.7, 4.3.12 and 4.3.16.
 */
import { type FileHandle, open } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { createInflateRaw } from 'node:zlib';

/** The end record is 22 bytes and a comment of at most 65,535. */
const END_BYTES = 22;
const MAX_COMMENT_BYTES = 65_535;
/** Room for 65,535 members, the format's most without zip64, of 100 bytes each; a wheel has a few hundred. */
const MAX_DIRECTORY_BYTES = 8 * 2 ** 20;
const END_SIGNATURE = 0x0605_4b50;
const ENTRY_SIGNATURE = 0x0201_4b50;
const LOCAL_SIGNATURE = 0x0403_4b50;

/** The member's bytes. Yields more than `expectedBytes` never: a deflate bomb is an error after the first byte too many. */
export async function* readZipMember(path: string, member: string, expectedBytes: number): AsyncGenerator<Uint8Array> {
  const file = await open(path);
  try {
    const { start, packedBytes, deflated } = await locate(file, path, member, expectedBytes);
    const packed = file.createReadStream({ start, end: start + packedBytes - 1, autoClose: false });
    const bytes: Readable = deflated ? packed.pipe(createInflateRaw()) : packed;
    // `pipe` does not hand errors on.
    if (deflated) packed.on('error', (error) => bytes.destroy(error));
    let total = 0;
    try {
      for await (const chunk of bytes as AsyncIterable<Uint8Array>) {
        total += chunk.length;
        if (total > expectedBytes) throw new Error(`${path}: ${member}: unpacks to more than ${expectedBytes} bytes`);
        yield chunk;
      }
    } finally {
      packed.destroy();
    }
    if (total !== expectedBytes) throw new Error(`${path}: ${member}: must be ${expectedBytes} bytes, got ${total}`);
  } finally {
    await file.close();
  }
}

async function locate(file: FileHandle, path: string, member: string, expectedBytes: number) {
  const { size } = await file.stat();
  const fail = (rule: string) => new Error(`${path}: ${rule}`);
  const read = async (offset: number, length: number) => {
    if (offset + length > size) throw fail(`damaged zip: ${length} bytes at ${offset} are past the end`);
    const bytes = Buffer.alloc(length);
    const { bytesRead } = await file.read(bytes, 0, length, offset);
    if (bytesRead !== length) throw fail('the file shrank while it was read');
    return bytes;
  };

  const tailBytes = Math.min(size, END_BYTES + MAX_COMMENT_BYTES);
  const tail = await read(size - tailBytes, tailBytes);
  let end = tailBytes - END_BYTES;
  while (end >= 0 && tail.readUInt32LE(end) !== END_SIGNATURE) end--;
  if (end < 0) throw fail('not a zip file');
  const directoryBytes = tail.readUInt32LE(end + 12);
  const directoryStart = tail.readUInt32LE(end + 16);
  if (directoryBytes > MAX_DIRECTORY_BYTES) throw fail(`zip directory of ${directoryBytes} bytes is too large`);

  const directory = await read(directoryStart, directoryBytes);
  for (let at = 0; at + 46 <= directory.length; ) {
    if (directory.readUInt32LE(at) !== ENTRY_SIGNATURE) throw fail('damaged zip directory');
    const nameBytes = directory.readUInt16LE(at + 28);
    const name = directory.toString('utf8', at + 46, Math.min(at + 46 + nameBytes, directory.length));
    if (name !== member) {
      at += 46 + nameBytes + directory.readUInt16LE(at + 30) + directory.readUInt16LE(at + 32);
      continue;
    }
    const flags = directory.readUInt16LE(at + 8);
    const method = directory.readUInt16LE(at + 10);
    const packedBytes = directory.readUInt32LE(at + 20);
    const bytes = directory.readUInt32LE(at + 24);
    const localStart = directory.readUInt32LE(at + 42);
    if (flags & 1) throw fail(`${member} is encrypted`);
    if (method !== 0 && method !== 8) throw fail(`${member}: compression method ${method} is not supported`);
    if (bytes !== expectedBytes) throw fail(`${member}: must be ${expectedBytes} bytes, got ${bytes}`);
    const local = await read(localStart, 30);
    if (local.readUInt32LE(0) !== LOCAL_SIGNATURE) throw fail(`${member}: damaged local header`);
    const start = localStart + 30 + local.readUInt16LE(26) + local.readUInt16LE(28);
    if (packedBytes === 0 || start + packedBytes > size) throw fail(`${member}: its data is past the end`);
    return { start, packedBytes, deflated: method === 8 };
  }
  throw fail(`has no member ${member}`);
}
