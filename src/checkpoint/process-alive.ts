/** Whether whoever left a file behind may still be at it. */

/** A process of this machine; one that may not be asked is there, too. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}
