/// The first 42 bytes of the frames between two UDP ports: Ethernet, IPv4 without options, UDP. Taken from one frame, and written
/// into the next ones, from which it differs by lengths, identification and checksums.
public struct FrameHead: BitwiseCopyable {
  @usableFromInline static var length: Int { @_noLocks get { 42 } }

  /// Bytes 0 to 37, as they lie in memory: to the ports.
  @usableFromInline var words: (UInt64, UInt64, UInt64, UInt64)
  @usableFromInline var end: (UInt32, UInt16)
  /// Sums of what does not change: of the IPv4 header, and of pseudo-header and ports.
  @usableFromInline var headerSum: UInt64
  @usableFromInline var datagramSum: UInt64
  @usableFromInline var hardware: UInt64
  /// The sender's in the lower half.
  @usableFromInline var addresses: UInt64
  @usableFromInline var ports: UInt32

  /// - Parameter frame: one of its frames, at least 42 bytes.
  @_noLocks
  public init(of frame: Bytes) {
    let frame = frame.slice(0, to: FrameHead.length)
    let base = unsafe UnsafeRawPointer(frame.base)
    unsafe words = (
      base.loadUnaligned(as: UInt64.self), base.loadUnaligned(fromByteOffset: 8, as: UInt64.self),
      base.loadUnaligned(fromByteOffset: 16, as: UInt64.self), base.loadUnaligned(fromByteOffset: 24, as: UInt64.self)
    )
    unsafe end = (base.loadUnaligned(fromByteOffset: 32, as: UInt32.self), base.loadUnaligned(fromByteOffset: 36, as: UInt16.self))
    hardware = frame.u48(0)
    let source = frame.u32(26)
    let destination = frame.u32(30)
    addresses = UInt64(source) | UInt64(destination) << 32
    ports = UInt32(frame.u16(34)) | UInt32(frame.u16(36)) << 16
    var header = Checksum()
    header.add(frame.u16(14))
    header.add(frame.u16(20))
    header.add(frame.u16(22))
    header.add(source)
    header.add(destination)
    headerSum = header.sum
    var datagram = UDPDatagram.pseudoHeader(source: source, destination: destination, length: 0)
    datagram.add(frame.u16(34))
    datagram.add(frame.u16(36))
    datagramSum = datagram.sum
  }

  /// Whether frames to `destination`, an Ethernet address, between these addresses and ports begin so (the sender's Ethernet address
  /// does not change).
  @inlinable @inline(__always) @_noLocks
  public func begins(destination: UInt64, from source: UInt32, _ sourcePort: UInt16, to address: UInt32, _ port: UInt16) -> Bool {
    hardware == destination && addresses == UInt64(source) | UInt64(address) << 32
      && ports == UInt32(sourcePort) | UInt32(port) << 16
  }

  /// Writes the head of a frame whose UDP payload of `length` bytes is there already.
  @inlinable @inline(__always) @_noLocks
  public func emit(into frame: Bytes, payload length: Int, identification: UInt16) {
    let head = frame.slice(0, to: FrameHead.length)
    unsafe head.base.storeBytes(of: words.0, as: UInt64.self)
    unsafe head.base.storeBytes(of: words.1, toByteOffset: 8, as: UInt64.self)
    unsafe head.base.storeBytes(of: words.2, toByteOffset: 16, as: UInt64.self)
    unsafe head.base.storeBytes(of: words.3, toByteOffset: 24, as: UInt64.self)
    unsafe head.base.storeBytes(of: end.0, toByteOffset: 32, as: UInt32.self)
    unsafe head.base.storeBytes(of: end.1, toByteOffset: 36, as: UInt16.self)
    let datagram = UInt16(truncatingIfNeeded: UDPDatagram.headerLength &+ length)
    let total = UInt16(truncatingIfNeeded: IPv4Packet.headerMin) &+ datagram
    head.set16(16, total)
    head.set16(18, identification)
    var header = Checksum(sum: headerSum)
    header.add(total)
    header.add(identification)
    head.set16(24, header.value)
    head.set16(38, datagram)
    var sum = Checksum(sum: datagramSum)
    // In the pseudo-header and in the header.
    sum.add(datagram)
    sum.add(datagram)
    sum.add(frame.slice(FrameHead.length, to: FrameHead.length &+ length))
    head.set16(40, UDPDatagram.onWire(sum))
  }
}
