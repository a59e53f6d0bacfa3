import CLinux
public import CMachnetABI
import Glibc

/// A connection to a daemon, for commands and tests. Calls block until the daemon has answered.
public final class ControlClient {
  let socket: Descriptor
  private var sequence: UInt32 = 0

  /// What a daemon answered; the descriptors are closed with it.
  public struct Reply {
    public let header: mn_reply
    public let descriptors: [Descriptor]
  }

  public init(path: String) throws(SystemError) {
    socket = try unsafe Descriptor(mnc_connect(path), "reach a daemon at \(path)")
  }

  /// A request with the fixed fields filled in.
  public func request(_ kind: Int) -> mn_request {
    sequence += 1
    var request = mn_request()
    request.magic = MN_MAGIC
    request.version = UInt16(MN_ABI_VERSION)
    request.kind = UInt16(kind)
    request.sequence = sequence
    return request
  }

  public func send(_ request: mn_request, descriptors: [Int32] = []) throws(SystemError) {
    try unsafe withUnsafeBytes(of: request) { bytes throws(SystemError) in
      try unsafe send(bytes: bytes, descriptors: descriptors)
    }
  }

  func send(bytes: UnsafeRawBufferPointer, descriptors: [Int32] = []) throws(SystemError) {
    try unsafe check(
      mnc_send(socket.number, bytes.baseAddress, bytes.count, descriptors, Int32(descriptors.count)), "send a request")
  }

  /// - Returns: nil when the daemon hung up.
  public func receive() throws(SystemError) -> Reply? {
    var header = mn_reply()
    var numbers = [Int32](repeating: -1, count: Int(MNC_DESCRIPTORS_MAX))
    var count: Int32 = 0
    var cut = false
    let length = unsafe withUnsafeMutableBytes(of: &header) { bytes in
      unsafe mnc_receive(
        socket.number, bytes.baseAddress!, bytes.count, &numbers, Int32(numbers.count), &count, &cut, true)
    }
    var descriptors: [Descriptor] = []
    for number in numbers.prefix(Int(count)) { descriptors.append(try Descriptor(number, "receive a descriptor")) }
    if length == 0 || length == -Int64(ECONNRESET) { return nil }
    try check(length, "receive a reply")
    guard length == MemoryLayout<mn_reply>.size, header.magic == MN_MAGIC, header.fd_count == descriptors.count else {
      throw SystemError(EPROTO, "understand the daemon (is it of another version?)")
    }
    return Reply(header: header, descriptors: descriptors)
  }

  public func call(_ request: mn_request, descriptors: [Int32] = []) throws(SystemError) -> Reply {
    try send(request, descriptors: descriptors)
    guard let reply = try receive() else { throw SystemError(ECONNRESET, "get an answer from the daemon") }
    return reply
  }

  /// What the daemon says about itself.
  ///
  /// - Throws: EPROTO where it says it as another version would.
  public func status() throws(SystemError) -> StatusReport {
    let text = try statusText()
    guard let report = try? StatusReport(json: text) else {
      throw SystemError(EPROTO, "understand the daemon's status (is it of another version?)")
    }
    return report
  }

  /// The same as JSON.
  public func statusText() throws(SystemError) -> String {
    let reply = try call(request(MN_REQUEST_STATUS))
    guard reply.header.status == 0 else { throw SystemError(reply.header.status, "get the daemon's status") }
    return try Self.text(reply)
  }

  /// The text that came with a reply.
  public static func text(_ reply: Reply) throws(SystemError) -> String {
    guard let memory = reply.descriptors.first else { return "" }
    var bytes = [UInt8](repeating: 0, count: Int(clamping: min(reply.header.size, 1 << 30)))
    var read = 0
    while read < bytes.count {
      let count = unsafe bytes.withUnsafeMutableBytes { buffer in
        unsafe pread(memory.number, buffer.baseAddress! + read, buffer.count - read, off_t(read))
      }
      guard count > 0 else { throw SystemError(count < 0 ? errno : EIO, "read the daemon's answer") }
      read += count
    }
    return String(decoding: bytes, as: UTF8.self)
  }
}
