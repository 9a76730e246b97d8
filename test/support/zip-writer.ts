/** A zip file of one or more members, in memory; `claims` makes the directory lie about a member. */
import { deflateRawSync } from 'node:zlib';

export interface ZipMember {
  readonly name: string;
  readonly data: Uint8Array;
  readonly deflate?: boolean;
  readonly claims?: {
    readonly bytes?: number;
    readonly packedBytes?: number;
    readonly start?: number;
    readonly flags?: number;
    readonly method?: number;
  };
}

export function buildZip(members: readonly ZipMember[], comment = ''): Buffer {
  const bodies: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, data, deflate, claims } of members) {
    const packed = deflate ? deflateRawSync(data) : Buffer.from(data);
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt16LE(claims?.flags ?? 0, 2);
    common.writeUInt16LE(claims?.method ?? (deflate ? 8 : 0), 4);
    common.writeUInt32LE(claims?.packedBytes ?? packed.length, 14);
    common.writeUInt32LE(claims?.bytes ?? data.length, 18);
    common.writeUInt16LE(Buffer.byteLength(name), 22);
    const local = Buffer.concat([Buffer.from('PK\x03\x04', 'latin1'), common, Buffer.from(name), packed]);
    const rest = Buffer.alloc(14);
    rest.writeUInt32LE(claims?.start ?? offset, 10);
    directory.push(Buffer.concat([Buffer.from('PK\x01\x02\x14\x00', 'latin1'), common, rest, Buffer.from(name)]));
    bodies.push(local);
    offset += local.length;
  }
  const entries = Buffer.concat(directory);
  const end = Buffer.alloc(18);
  end.writeUInt16LE(members.length, 4);
  end.writeUInt16LE(members.length, 6);
  end.writeUInt32LE(entries.length, 8);
  end.writeUInt32LE(offset, 12);
  end.writeUInt16LE(comment.length, 16);
  return Buffer.concat([...bodies, entries, Buffer.from('PK\x05\x06', 'latin1'), end, Buffer.from(comment)]);
}
