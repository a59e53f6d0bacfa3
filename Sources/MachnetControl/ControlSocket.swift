import CLinux
import Glibc

/// The daemon's claim on the path of its control socket, and then the listening socket.
///
/// The claim is a lock on `PATH.lock`, which the kernel drops with the process: a connect test alone could let two
/// daemons that start together each take the other's socket for a stale one. It is to be made before anything else that
/// a daemon has only once, so that the second one fails here and touches nothing of the first.
public final class ControlSocket {
  private let path: String
  private let mode: UInt32
  private let gid: UInt32
  /// The group of `Config.Control.operators`.
  let operators: UInt32?
  private let lock: Descriptor
  private var inode: UInt64?

  /// Claims the path.
  ///
  /// - Throws: EADDRINUSE where a daemon serves it, EEXIST where it is no socket, ENOENT for an unknown group.
  public init(_ config: Config.Control) throws(SystemError) {
    path = config.socket
    mode = config.mode
    gid = try Self.identifier(of: config.group, "control.group") ?? UInt32.max
    operators = try Self.identifier(of: config.operators, "control.operators")
    if let slash = path.lastIndex(of: "/"), slash != path.startIndex {
      // One level, as /run/machnet after a boot; an error shows in the next call.
      _ = unsafe mkdir(String(path[..<slash]), 0o755)
    }
    let number = unsafe open(path + ".lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
    lock = try Descriptor(
      number < 0 ? -errno : number, "open \(path).lock (is its directory there and writable? see control.socket)")
    guard flock(lock.number, LOCK_EX | LOCK_NB) == 0 else {
      throw SystemError(EADDRINUSE, "serve \(path), because another machnetd does (stop it or choose another control.socket)")
    }
    try Self.clear(path)
  }

  private static func identifier(of group: String?, _ key: String) throws(SystemError) -> UInt32? {
    guard let group else { return nil }
    return UInt32(try unsafe check(mnc_group_id(group), "find the group '\(group)' (make it with groupadd, or change \(key))"))
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

  /// From here on clients can connect.
  func listen() throws(SystemError) -> Descriptor {
    let listener = try unsafe Descriptor(mnc_listen(path, mode, gid), "listen at \(path)")
    inode = Self.inode(of: path)
    return listener
  }

  private static func inode(of path: String) -> UInt64? {
    var status = stat()
    return unsafe lstat(path, &status) == 0 ? UInt64(status.st_ino) : nil
  }

  /// Takes the path away, unless it is somebody else's by now.
  func remove() {
    if let inode, Self.inode(of: path) == inode { unsafe unlink(path) }
  }
}
