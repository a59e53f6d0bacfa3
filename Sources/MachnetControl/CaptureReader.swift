import CLinux
import CMachnetABI
import Glibc

/// One frame of a capture.
public struct CapturedFrame: Sendable {
  /// Which engine, and which of its interfaces: a port, or `MN_CAPTURE_LOCAL`.
  public let engine, interface: Int
  public let isOutgoing: Bool
  /// CLOCK_REALTIME, ns.
  public let timestamp: UInt64
  /// Bytes that it had.
  public let original: Int
  /// Those that were kept.
  public let bytes: [UInt8]
}

/// Reads what the engines of a daemon capture, as a client. The capture ends with this object.
public final class CaptureReader {
  private let client: ControlClient
  private var rings: [Ring]

  /// The only reader of one engine's memory.
  @safe
  private struct Ring {
    let engine: Int
    /// Safety: mapped by `CaptureReader.init` until its `deinit`.
    let base: UnsafeMutableRawPointer
    let interfaces: Int
    var head: UInt64 = 0
  }

  private static let size = UInt64(MN_PAGE + MN_CAPTURE_DATA)

  /// - Parameters:
  ///   - address: host byte order; 0: any.
  ///   - port: 0: any.
  ///   - snap: bytes of a frame that are kept, 1...65535.
  /// - Throws: EPERM, EBUSY (somebody captures already).
  public init(_ client: ControlClient, address: UInt32, port: UInt16, snap: UInt16) throws(SystemError) {
    self.client = client
    rings = []
    var request = client.request(MN_REQUEST_CAPTURE)
    if address != 0 { request.peer = mapped(address) }
    request.peer_port = port
    request.snap = snap
    let reply = try client.call(request)
    guard reply.header.status == 0 else { throw SystemError(reply.header.status, "capture") }
    guard reply.header.size == Self.size, reply.descriptors.count == reply.header.engine else {
      throw SystemError(EPROTO, "understand the daemon (is it of another version?)")
    }
    for (engine, memory) in reply.descriptors.enumerated() {
      var error: Int32 = 0
      guard let base = unsafe mnc_map(memory.number, Self.size, true, &error) else {
        throw SystemError(error, "map a capture's memory")
      }
      let interfaces = unsafe Int(base.assumingMemoryBound(to: mn_capture.self).pointee.interface_count)
      unsafe rings.append(Ring(engine: engine, base: base, interfaces: min(interfaces, Int(MN_CAPTURE_LOCAL))))
    }
  }

  deinit { for ring in rings { unsafe mn_linux_unmap(ring.base, Int(Self.size)) } }

  /// Ports of an engine.
  public func interfaceCount(engine: Int) -> Int { rings[engine].interfaces }
  public var engineCount: Int { rings.count }

  /// Frames that passed the filter, and those of them that were lost because this reader was slow.
  public func counts(engine: Int, interface: Int) -> (seen: UInt64, dropped: UInt64) {
    precondition(interface < Int(MN_CAPTURE_INTERFACES))
    let base = unsafe rings[engine].base
    let seen = unsafe mn_load_relaxed_u64(base + 192 + interface * 8)
    let dropped = unsafe mn_load_relaxed_u64(base + 192 + (Int(MN_CAPTURE_INTERFACES) + interface) * 8)
    return (seen, dropped)
  }

  /// Takes what there is, at most `limit` frames of each engine, in the order of their time.
  public func take(limit: Int) throws(SystemError) -> [CapturedFrame] {
    var frames: [CapturedFrame] = []
    for index in rings.indices { try take(&rings[index], limit, &frames) }
    if rings.count > 1 { frames.sort { $0.timestamp < $1.timestamp } }
    return frames
  }

  private func take(_ ring: inout Ring, _ limit: Int, _ frames: inout [CapturedFrame]) throws(SystemError) {
    let capacity = UInt64(MN_CAPTURE_DATA)
    let header = 32
    // Acquire: pairs with the engine's release.
    let tail = unsafe mn_load_acquire_u64(ring.base + 64)
    for _ in 0..<limit where ring.head != tail {
      let record = unsafe ring.base + Int(MN_PAGE) + Int(ring.head & (capacity - 1))
      let length = unsafe Int(record.load(as: UInt32.self))
      let stride = UInt64((header + length + 31) & ~31)
      guard tail &- ring.head <= capacity, stride <= tail &- ring.head else { throw SystemError(EPROTO, "read a capture's memory") }
      let start = Int((ring.head + UInt64(header)) & (capacity - 1))
      let data = unsafe UnsafeRawBufferPointer(start: ring.base + Int(MN_PAGE), count: Int(capacity))
      let first = min(length, Int(capacity) - start)
      let bytes = unsafe Array(data[start..<start + first]) + Array(data[..<(length - first)])
      unsafe frames.append(
        CapturedFrame(
          engine: ring.engine, interface: Int(record.load(fromByteOffset: 16, as: UInt16.self)),
          isOutgoing: Int(record.load(fromByteOffset: 18, as: UInt16.self)) == MN_CAPTURE_OUT,
          timestamp: record.load(fromByteOffset: 8, as: UInt64.self),
          original: Int(record.load(fromByteOffset: 4, as: UInt32.self)), bytes: bytes))
      ring.head += stride
    }
    // Release: the engine may use the room again.
    unsafe mn_store_release_u64(ring.base + 128, ring.head)
  }

  /// Whether the daemon is still there.
  public var isConnected: Bool {
    var entry = pollfd(fd: client.socket.number, events: 0, revents: 0)
    return unsafe poll(&entry, 1, 0) == 0 || entry.revents & Int16(POLLHUP | POLLERR) == 0
  }
}
