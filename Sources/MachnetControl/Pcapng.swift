/// Blocks of a pcapng file (https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcapng), little-endian.
///
/// Every interface is Ethernet, with one snap length: libpcap reads no other mixture.
public struct Pcapng {
  public private(set) var bytes: [UInt8] = []

  public init() {}

  /// What has gathered; none is left.
  public mutating func drain() -> [UInt8] {
    defer { bytes.removeAll(keepingCapacity: true) }
    return bytes
  }

  /// Section header block: begins the file.
  public mutating func section(application: String) {
    block(0x0A0D_0D0A) { body in
      body.u32(0x1A2B_3C4D)
      body.u16(1)
      body.u16(0)
      body.u64(UInt64.max)  // the section's length: not known
      body.option(4, Array(application.utf8))  // shb_userappl
      body.u32(0)  // opt_endofopt
    }
  }

  /// Interface description block: interfaces are numbered from 0 in the order of these.
  public mutating func interface(name: String, description: String, snap: Int) {
    block(1) { body in
      body.u16(1)  // LINKTYPE_ETHERNET
      body.u16(0)
      body.u32(UInt32(snap))
      body.option(2, Array(name.utf8))  // if_name
      body.option(3, Array(description.utf8))  // if_description
      body.option(9, [9])  // if_tsresol: 10^-9 s
      body.u32(0)
    }
  }

  /// Enhanced packet block.
  public mutating func packet(_ frame: CapturedFrame, interface: Int) {
    block(6) { body in
      body.u32(UInt32(interface))
      body.u32(UInt32(frame.timestamp >> 32))
      body.u32(UInt32(truncatingIfNeeded: frame.timestamp))
      body.u32(UInt32(frame.bytes.count))
      body.u32(UInt32(frame.original))
      body.padded(frame.bytes)
      body.option(2, [frame.isOutgoing ? 2 : 1, 0, 0, 0])  // epb_flags: direction
      body.u32(0)
    }
  }

  /// Interface statistics block.
  ///
  /// - Parameter timestamp: ns.
  public mutating func statistics(interface: Int, timestamp: UInt64, received: UInt64, dropped: UInt64) {
    block(5) { body in
      body.u32(UInt32(interface))
      body.u32(UInt32(timestamp >> 32))
      body.u32(UInt32(truncatingIfNeeded: timestamp))
      for (code, value) in [(4, received), (5, dropped)] {  // isb_ifrecv, isb_ifdrop
        var word = Body()
        word.u64(value)
        body.option(UInt16(code), word.bytes)
      }
      body.u32(0)
    }
  }

  private mutating func block(_ type: UInt32, _ fill: (inout Body) -> Void) {
    var body = Body()
    fill(&body)
    var frame = Body()
    frame.u32(type)
    frame.u32(UInt32(12 + body.bytes.count))
    bytes += frame.bytes + body.bytes
    var end = Body()
    end.u32(UInt32(12 + body.bytes.count))
    bytes += end.bytes
  }

  private struct Body {
    var bytes: [UInt8] = []

    mutating func u16(_ value: UInt16) { append(UInt64(value), 2) }
    mutating func u32(_ value: UInt32) { append(UInt64(value), 4) }
    mutating func u64(_ value: UInt64) { append(value, 8) }

    private mutating func append(_ value: UInt64, _ count: Int) {
      for index in 0..<count { bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * index))) }
    }

    mutating func padded(_ data: [UInt8]) {
      bytes += data
      while bytes.count % 4 != 0 { bytes.append(0) }
    }

    mutating func option(_ code: UInt16, _ value: [UInt8]) {
      u16(code)
      u16(UInt16(value.count))
      padded(value)
    }
  }
}
