import CLinux
import CMachnetABI
import MachnetChannel
import MachnetEngine

/// What lay in the RX rings of an endpoint when it ended, while its socket lives on: its program became another one by exec,
/// or closed the descriptor that somebody else has, too. It is moved into the rings of the next endpoint that the socket gets.
///
/// On the kernel it would wait in the socket's queue for as long as there is a socket. So it does here, within limits.
struct Unclaimed {
  /// Of one socket, the oldest first: record headers and payloads, as in a ring, but one behind the other.
  struct Datagrams {
    fileprivate(set) var bytes: [UInt8] = []
    fileprivate(set) var count = 0

    /// - Parameter record: in memory that an application can write.
    mutating func append(_ record: Record) {
      let start = bytes.count
      unsafe bytes.append(contentsOf: UnsafeRawBufferPointer(start: record.base, count: Int(MN_RECORD_HEADER) + record.length))
      unsafe bytes.withUnsafeMutableBytes { bytes in
        let header = unsafe (bytes.baseAddress! + start).assumingMemoryBound(to: mn_record.self)
        // The length that was checked. What an engine has charged a ring for, this ring's reader pays.
        unsafe header.pointee.length = UInt32(record.length)
        unsafe header.pointee.flags &= ~UInt16(MN_RECORD_CHARGED)
      }
      count += 1
    }

    mutating func append(_ others: Datagrams) {
      bytes += others.bytes
      count += others.count
    }

    /// Each record in turn, its length first.
    func forEach(_ body: (Int, UnsafeRawBufferPointer) -> Void) {
      unsafe bytes.withUnsafeBytes { bytes in
        var at = 0
        while at < bytes.count {
          let length = unsafe Int(bytes.loadUnaligned(fromByteOffset: at, as: UInt32.self))
          let next = at + Int(MN_RECORD_HEADER) + length
          unsafe body(length, UnsafeRawBufferPointer(rebasing: bytes[at..<next]))
          at = next
        }
      }
    }
  }

  struct Entry {
    let netnsCookie: UInt64
    let inode: UInt64
    let uid: UInt32
    /// Who had the socket.
    let program: String
    let pid: Int32
    let since = mn_linux_monotonic()
    /// The socket has gone back to the kernel before. Else the program has simply closed it, and if nobody else has it, they are
    /// gone as on the kernel: not worth a word.
    var isLoss: Bool
    var datagrams: Datagrams
  }

  /// By the socket's cookie.
  private(set) var entries: [UInt64: Entry] = [:]

  /// Bytes that are kept of all, and of one user's.
  static let limit = 64 << 20
  static let limitPerUser = 16 << 20
  static let socketLimit = 4096

  /// - Returns: whether there is room; else they are lost.
  mutating func add(_ entry: Entry, cookie: UInt64) -> Bool {
    var joined = entry
    var all = entry.datagrams.bytes.count, ofUser = all
    for other in entries.values {
      all += other.datagrams.bytes.count
      if other.uid == entry.uid { ofUser += other.datagrams.bytes.count }
    }
    guard all <= Unclaimed.limit, ofUser <= Unclaimed.limitPerUser, entries.count < Unclaimed.socketLimit else { return false }
    if let older = entries[cookie] {
      joined.isLoss = joined.isLoss || older.isLoss
      joined.datagrams = older.datagrams
      joined.datagrams.append(entry.datagrams)
    }
    entries[cookie] = joined
    return true
  }

  mutating func take(cookie: UInt64) -> Datagrams? { entries.removeValue(forKey: cookie)?.datagrams }
}

extension Channel {
  /// What the RX rings of a block hold that no engine touches, the oldest first. What the application has written there, it
  /// is going to read itself; but it cannot make it more than the rings can hold.
  func unread(_ index: UInt32) -> Unclaimed.Datagrams {
    var found = Unclaimed.Datagrams()
    var readers = receiveReaders(of: index)
    var room = readers.count * Int(receiveCapacity)
    while true {
      // Each ring is in order; among them, by time.
      var first: (ring: Int, record: Record, time: UInt64)?
      for ring in readers.indices {
        guard case .record(let record) = readers[ring].peek() else { continue }
        let time = unsafe mn_load_relaxed_u64(record.base + MemoryLayout<mn_record>.offset(of: \.timestamp)!)
        if first == nil || time < first!.time { first = (ring, record, time) }
      }
      guard let first, room >= Int(first.record.stride) else { return found }
      room -= Int(first.record.stride)
      found.append(first.record)
      readers[first.ring].advance(first.record)
    }
  }

  /// Puts datagrams into the RX rings of a new block, before any engine knows it. All into the first ring if they fit, which
  /// keeps their order.
  ///
  /// - Returns: how many found no room.
  func refill(_ index: UInt32, _ datagrams: Unclaimed.Datagrams) -> Int {
    var writers = receiveWriters(of: index)
    var ring = 0
    var lost = 0
    unsafe datagrams.forEach { length, bytes in
      while ring < writers.count {
        if let record = writers[ring].reserve(length) {
          unsafe record.base.copyMemory(from: bytes.baseAddress!, byteCount: bytes.count)
          writers[ring].commit(record)
          return
        }
        ring += 1
      }
      lost += 1
    }
    for writer in writers { writer.publish() }
    markReceived(index)
    return lost
  }
}

extension ControlServer {
  /// Keeps what was not received of an endpoint that ends, for whoever shows its socket next. No engine touches its rings any more.
  func keepUnread(of endpoint: Endpoint, in channel: Channel) {
    let datagrams = channel.unread(endpoint.reference.index)
    guard datagrams.count > 0 else { return }
    let entry = Unclaimed.Entry(
      netnsCookie: endpoint.netnsCookie, inode: endpoint.inode, uid: channel.uid, program: endpoint.program, pid: endpoint.pid,
      isLoss: endpoint.isLeft, datagrams: datagrams)
    if !unclaimed.add(entry, cookie: endpoint.cookie) && endpoint.isLeft { counters.abandonedDatagrams += UInt64(datagrams.count) }
  }

  /// The same of all endpoints of a channel that ends.
  func keepUnread(of channel: Channel) {
    for case let endpoint? in channel.endpoints { keepUnread(of: endpoint, in: channel) }
  }

  /// Forgets what waits for sockets that are no more. (Those of other network namespaces are not seen from here: a minute.)
  func forgetUnclaimed() {
    guard !unclaimed.entries.isEmpty, let living = livingCookies() else { return }
    let limit = mn_linux_monotonic() - min(mn_linux_monotonic(), 60_000_000_000)
    for (cookie, entry) in unclaimed.entries
    where netns.isOwn(entry.netnsCookie) ? !living.contains(cookie) : entry.since < limit {
      _ = unclaimed.take(cookie: cookie)
      if entry.isLoss { counters.abandonedDatagrams += UInt64(entry.datagrams.count) }
    }
  }

  /// SO_COOKIE of every UDP socket of the daemon's network namespace; nil: the kernel does not tell.
  func livingCookies() -> Set<UInt64>? {
    let limit = 65536
    if cookies.isEmpty { cookies = Array(repeating: 0, count: limit) }
    let count = Int(unsafe mnc_udp_cookies(&cookies, Int32(limit)))
    return count >= 0 && count <= limit ? Set(cookies[..<count]) : nil
  }

  /// Waits until the engines have let go of the endpoint that a socket had before, for a bounded time: what its rings hold is
  /// the next one's.
  func finishDeparture(of cookie: UInt64) {
    finishDepartures()
    let limit = mn_linux_monotonic() + 100_000_000
    while departing.contains(where: { departure in
      if let endpoint = departure.endpoint { return endpoint.cookie == cookie }
      return departure.channel.endpoints.contains { $0?.cookie == cookie }
    }), mn_linux_monotonic() < limit {
      mn_linux_sleep(20_000)
      finishDepartures()
    }
  }
}
