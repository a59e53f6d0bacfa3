import CLinux
import Glibc

/// The daemon's listening socket, and its claim on the path.
///
/// The claim is a lock on `PATH.lock`, which the kernel drops with the process: a connect test alone could let two
/// daemons that start together each take the other's socket for a stale one.
final class ControlSocket {
  let listener: Descriptor
  private let path: String
  private let lock: Descriptor
  private let inode: UInt64

  init(_ config: Config.Control) throws(SystemError) {
    path = config.socket
    var gid = UInt32.max
    if let group = config.group {
      gid = UInt32(
        try unsafe check(mnc_group_id(group), "find the group '\(group)' (make it with groupadd, or change control.group)"))
    }
    if let slash = path.lastIndex(of: "/"), slash != path.startIndex {
      // One level, as /run/machnet after a boot; an error shows in the next call.
      _ = unsafe mkdir(String(path[..<slash]), 0o755)
    }
    lock = try unsafe Descriptor(
      kernelResult(open(path + ".lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)),
      "open \(path).lock (is its directory there and writable?)")
    guard flock(lock.number, LOCK_EX | LOCK_NB) == 0 else {
      throw SystemError(EADDRINUSE, "serve \(path), because another machnetd does (stop it or choose another control.socket)")
    }
    try Self.clear(path)
    listener = try unsafe Descriptor(mnc_listen(path, config.mode, gid), "listen at \(path)")
    inode = Self.inode(of: path) ?? 0
  }

  /// Removes what a dead daemon left; refuses what is alive, or no socket.
  private static func clear(_ path: String) throws(SystemError) {
    var status = stat()
    guard unsafe lstat(path, &status) == 0 else { return }
    guard status.st_mode & S_IFMT == S_IFSOCK else {
      throw SystemError(EEXIST, "serve \(path), because it is no socket (remove it or choose another control.socket)")
    }
    let connection = unsafe mnc_connect(path)
    guard connection < 0 else {
      mn_linux_close(connection)
      throw SystemError(EADDRINUSE, "serve \(path), because another daemon does (stop it or choose another control.socket)")
    }
    guard connection == -ECONNREFUSED else {
      throw SystemError(-connection, "ask whether a daemon serves \(path)")
    }
    unsafe unlink(path)
  }

  private static func inode(of path: String) -> UInt64? {
    var status = stat()
    return unsafe lstat(path, &status) == 0 ? UInt64(status.st_ino) : nil
  }

  /// Takes the path away, unless it is somebody else's by now.
  func remove() {
    if Self.inode(of: path) == inode { unsafe unlink(path) }
  }
}

private func kernelResult(_ result: Int32) -> Int32 { result < 0 ? -errno : result }
