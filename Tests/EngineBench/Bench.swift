import CLinux
import CMachnetABI
import Glibc
package import MachnetChannel
package import MachnetEngine

/// A channel as the daemon would make it, with the test in the application's place. Whoever reads or writes beyond it dies.
@safe package final class TestChannel {
  package let identifier: UInt32
  package let base: UnsafeMutableRawPointer
  package let size: Int
  package let doorbell = mn_linux_eventfd()
  package let engineCount: UInt32
  package let endpoints: UInt32
  package static let txCapacity: UInt32 = 262_144
  package static let rxCapacity: UInt32 = 262_144

  package init(identifier: UInt32, endpoints: UInt32 = 8, engineCount: UInt32 = 1) {
    self.identifier = identifier
    self.engineCount = engineCount
    self.endpoints = endpoints
    size = Int(mn_channel_size(endpoints, engineCount, TestChannel.txCapacity, TestChannel.rxCapacity))
    let guarded = unsafe mn_linux_map(size + 2 * Int(MN_PAGE))!
    unsafe base = guarded + Int(MN_PAGE)
    precondition(unsafe mprotect(guarded, Int(MN_PAGE), PROT_NONE) == 0 && mprotect(base + size, Int(MN_PAGE), PROT_NONE) == 0)
    let header = unsafe base.assumingMemoryBound(to: mn_channel.self)
    unsafe header.pointee.magic = MN_MAGIC
    unsafe header.pointee.version = MN_ABI_VERSION
    unsafe header.pointee.size = UInt64(size)
    unsafe header.pointee.identifier = identifier
    unsafe header.pointee.endpoint_capacity = endpoints
    unsafe header.pointee.engine_count = engineCount
    unsafe header.pointee.tx_capacity = TestChannel.txCapacity
    unsafe header.pointee.rx_capacity = TestChannel.rxCapacity
  }

  deinit {
    unsafe mn_linux_unmap(base - Int(MN_PAGE), size + 2 * Int(MN_PAGE))
    mn_linux_close(doorbell)
  }

  package var isDamaged: Bool { unsafe base.assumingMemoryBound(to: mn_channel.self).pointee.damaged != 0 }

  package func block(_ index: UInt32) -> UnsafeMutableRawPointer { unsafe base + Int(mn_endpoint_offset(index)) }

  package func txRing(_ index: UInt32) -> UnsafeMutableRawPointer {
    unsafe base
      + Int(mn_rings_offset(index, endpoints, engineCount, TestChannel.txCapacity, TestChannel.rxCapacity))
  }

  package func rxRing(_ index: UInt32, engine: UInt32 = 0) -> UnsafeMutableRawPointer {
    unsafe txRing(index) + Int(mn_ring_stride(UInt64(TestChannel.txCapacity)))
      + Int(engine) * Int(mn_ring_stride(UInt64(TestChannel.rxCapacity)))
  }

  package func ready(engine: UInt32 = 0) -> UnsafeMutableRawPointer {
    unsafe base + Int(MN_CHANNEL_READY) + Int(engine) * MemoryLayout<mn_ready>.size
  }
}

/// A datagram as the application sees it.
package struct Received: Equatable {
  package var payload: [UInt8]
  package var remote: UInt32
  package var remotePort: UInt16
  package var local: UInt32
  package var localPort: UInt16
  package var ttl: UInt8
  package var tos: UInt8
  package var interface: UInt32

  package init(
    payload: [UInt8], remote: UInt32, remotePort: UInt16, local: UInt32, localPort: UInt16, ttl: UInt8, tos: UInt8,
    interface: UInt32
  ) {
    self.payload = payload
    self.remote = remote
    self.remotePort = remotePort
    self.local = local
    self.localPort = localPort
    self.ttl = ttl
    self.tos = tos
    self.interface = interface
  }
}

/// The third word of a v4-mapped address (RFC 4291, 2.5.5.2).
private let mappedPrefix = (0x0000_FFFF as UInt32).bigEndian

/// The application's side of one endpoint, by the channel protocol.
package final class Application {
  package let channel: TestChannel
  package let index: UInt32
  package let directory: Directory
  package let home: UInt32
  package let eventDescriptor = mn_linux_eventfd()
  package var writer: RingWriter
  package var readers: [RingReader]
  package var reference: EndpointReference { EndpointReference(channel: channel.identifier, index: index) }

  package init(_ channel: TestChannel, _ index: UInt32, _ directory: Directory, home: UInt32 = 0) {
    self.channel = channel
    self.index = index
    self.directory = directory
    self.home = home
    writer = unsafe RingWriter(unsafe: channel.txRing(index), capacity: TestChannel.txCapacity)
    readers = (0..<channel.engineCount).map {
      unsafe RingReader(unsafe: channel.rxRing(index, engine: $0), capacity: TestChannel.rxCapacity)
    }
  }

  deinit { mn_linux_close(eventDescriptor) }

  /// Returns false when the ring is full.
  package func send(
    _ payload: [UInt8], to address: UInt32, _ port: UInt16, segment: Int = 0, source: UInt32? = nil, ttl: UInt8? = nil,
    tos: UInt8? = nil, dontFragment: Bool = false, machnet: Bool = false
  ) -> Bool {
    guard let record = writer.reserve(payload.count) else { return false }
    var flags = 0
    unsafe record.header.pointee.remote.words = (0, 0, mappedPrefix, address.bigEndian)
    unsafe record.header.pointee.local.words = (0, 0, mappedPrefix, (source ?? 0).bigEndian)
    unsafe record.header.pointee.remote_port = port
    unsafe record.header.pointee.local_port = 0
    unsafe record.header.pointee.segment = UInt16(segment)
    if source != nil { flags |= Int(MN_RECORD_LOCAL_ADDRESS) }
    if let ttl {
      flags |= Int(MN_RECORD_TTL)
      unsafe record.header.pointee.ttl = ttl
    }
    if let tos {
      flags |= Int(MN_RECORD_TOS)
      unsafe record.header.pointee.tos = tos
    }
    if dontFragment { flags |= Int(MN_RECORD_DONT_FRAGMENT) }
    if machnet { flags |= Int(MN_RECORD_MACHNET) }
    unsafe record.header.pointee.flags = UInt16(flags)
    unsafe payload.withUnsafeBytes { unsafe record.payload.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(record.base), byteCount: $0.count) }
    writer.commit(record)
    announce()
    return true
  }

  package func announce() {
    writer.publish()
    mn_fence()
    let word = unsafe channel.ready(engine: home) + Int(index >> 6) * 8
    let bit: UInt64 = 1 << UInt64(index & 63)
    if unsafe mn_load_relaxed_u64(word) & bit == 0 { _ = unsafe mn_fetch_or_u64(word, bit) }
    if unsafe mn_load_relaxed_u32(directory.engineWord(home)) != 0 { mn_linux_eventfd_signal(channel.doorbell) }
  }

  package func receive() -> Received? {
    for engine in readers.indices {
      guard case .record(let record) = readers[engine].peek() else { continue }
      let header = unsafe record.header.pointee
      let payload = unsafe [UInt8](UnsafeRawBufferPointer(start: record.payload, count: record.length))
      if header.flags & UInt16(MN_RECORD_CHARGED) != 0 { readers[engine].take(charge: mn_charge(UInt32(record.length))) }
      readers[engine].advance(record)
      readers[engine].publish()
      return Received(
        payload: payload, remote: UInt32(bigEndian: header.remote.words.3), remotePort: header.remote_port,
        local: UInt32(bigEndian: header.local.words.3), localPort: header.local_port, ttl: header.ttl, tos: header.tos,
        interface: header.interface)
    }
    return nil
  }

  /// The segment size of the record that comes next; nil: none does.
  package var nextSegment: UInt16? {
    for engine in readers.indices {
      if case .record(let record) = readers[engine].peek() { return unsafe record.header.pointee.segment }
    }
    return nil
  }

  /// SO_RCVBUF and UDP_GRO as the shim states them.
  package func want(limit: UInt32 = 0, together: Bool = false) {
    let endpoint = unsafe channel.block(index).assumingMemoryBound(to: mn_endpoint.self)
    unsafe endpoint.pointee.receive_limit = limit
    unsafe endpoint.pointee.receive_together = together ? 1 : 0
  }

  /// A lie about the charges taken.
  package func claim(taken: UInt64) { for reader in readers { reader.take(charge: taken) } }

  package func takeError() -> Int32 {
    unsafe Int32(mn_exchange_u32(channel.block(index) + Int(MN_OFFSET_ENDPOINT_ERROR), 0))
  }

  package var rxDrops: UInt64 { unsafe mn_load_relaxed_u64(channel.block(index) + Int(MN_OFFSET_ENDPOINT_RX_DROPS)) }
}

/// A directory with the given interfaces, addresses in host byte order.
@safe package final class TestDirectory {
  package let base = unsafe mn_linux_map(MN_DIRECTORY_SIZE)!
  package let directory: Directory

  package init(interfaces: [InterfaceOptions] = [], hostAddresses: [UInt32] = []) {
    directory = unsafe Directory(unsafe: base)
    unsafe directory.header.pointee.magic = MN_MAGIC
    unsafe directory.header.pointee.interface_count = UInt32(interfaces.count)
    unsafe directory.header.pointee.host_address_count = UInt32(hostAddresses.count)
    for (index, interface) in interfaces.enumerated() {
      unsafe (base + MN_DIRECTORY_INTERFACES).assumingMemoryBound(to: mn_interface.self)[index] = mn_interface(
        address: interface.address, mask: interface.mask, gateway: interface.gateway, mtu: UInt32(interface.mtu))
    }
    for (index, address) in hostAddresses.enumerated() {
      unsafe (base + MN_DIRECTORY_HOST_ADDRESSES).assumingMemoryBound(to: UInt32.self)[index] = address
    }
  }

  deinit { unsafe mn_linux_unmap(base, MN_DIRECTORY_SIZE) }
}

package func ip(_ a: UInt32, _ b: UInt32, _ c: UInt32, _ d: UInt32) -> UInt32 { a << 24 | b << 16 | c << 8 | d }

extension EndpointIdentity {
  package init(_ address: UInt32, _ port: UInt16, _ application: Application, netns: UInt16 = 0, peer: (UInt32, UInt16)? = nil) {
    self.init(localPort: port, eventDescriptor: application.eventDescriptor)
    localAddress = address
    self.netns = netns
    homeEngine = application.home
    if let peer { (peerAddress, peerPort) = peer }
  }
}
