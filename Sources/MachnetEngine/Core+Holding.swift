import CMachnetABI
import MachnetChannel
import MachnetMemory
import MachnetTransport
import MachnetWire

/// Sockets that have no room: what has arrived for them waits, and their senders are told to wait.
///
/// Neither may a program's sockets that never read cost another program's anything. Who was told is a bit of a session and port,
/// so there is one for everybody. What waits here is in lots, and who has most of them takes no more while it has as many as are
/// free (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM ToN 1998): there are
/// some for the next program. Where many have taken the last, who has most loses some to who has fewer.
extension Core {
  /// A socket of ours that has no room, and whose senders were told so.
  struct Full: BitwiseCopyable {
    var endpoint: UInt32
    var localPort: UInt16
  }

  /// A part of a list of messages that have arrived, and wait for room in their receiver's RX ring.
  struct Lot: BitwiseCopyable {
    /// The next one of the list, of a receiver's or the free ones.
    var next: UInt32
    /// Where the first message is, and where the next one goes, bytes.
    var read: UInt32
    var written: UInt32
  }

  /// Bytes of a lot: the largest record.
  static var lotSize: Int { @_noLocks get { Int(ringStride(UInt64(MN_DATAGRAM_MAX))) } }
  static var lotsOfParking: Int { @_noLocks get { 16 } }
  /// Sockets without room that one iteration looks at, and that one does in every `lookInterval` ns.
  static var looks: Int { @_noLocks get { 16 } }
  static var looksMost: Int { @_noLocks get { 256 } }
  static var lookInterval: UInt64 { @_noLocks get { 100_000 } }
  /// A pause that a sender seems not to have heard of is repeated after this long, ns.
  static var pauseAgain: UInt64 { @_noLocks get { 10_000_000 } }

  /// Looks whether there is room now where there was none, each time for some sockets: others' messages must not wait for it.
  @inline(never) @_noLocks
  mutating func lookForRoom() {
    var looks = Core.looks
    if now >= lookAt {
      looks = Core.looksMost
      lookAt = now &+ Core.lookInterval
    }
    if parkedCount != 0 { emptyParked(looks) }
    if fullCount != 0 { tellResumed(looks) }
  }

  // MARK: Messages that wait

  /// Keeps a message until its receiver has room: what was on its way before the pause reached its sender.
  @inline(never) @_noLocks
  mutating func park(_ payload: Bytes, _ envelope: Envelope, interface: UInt32, for receiver: UInt32) {
    let stride = UInt32(truncatingIfNeeded: ringStride(UInt64(truncatingIfNeeded: payload.count)))
    var lot = endpoints[receiver].lastParked
    if endpoints[receiver].parking == none || Int(lots[lot].written &+ stride) > Core.lotSize {
      lot = takeLot(for: receiver)
      if lot == none {
        dropReceived(.receiveRingFull, receiver)
        return
      }
    }
    let record = record(in: lot, at: lots[lot].written, length: payload.count)
    unsafe record.header.pointee.length = UInt32(truncatingIfNeeded: payload.count)
    unsafe record.header.pointee.kind = UInt16(MN_RECORD_DATAGRAM)
    unsafe fill(record, payload.base, envelope, interface: interface)
    lots[lot].written &+= stride
    endpoints[receiver].parkedMessages &+= 1
  }

  @inline(__always) @_noLocks
  private func record(in lot: UInt32, at offset: UInt32, length: Int) -> Record {
    unsafe Record(unsafe: UnsafeMutableRawPointer(lotMemory.base + Int(lot) &* Core.lotSize + Int(offset)), length: length)
  }

  /// Another lot at the end of a receiver's list; `none`: it has its share, or there is none.
  @_noLocks
  private mutating func takeLot(for receiver: UInt32) -> UInt32 {
    let channel = endpoints[receiver].channel
    if Int(endpoints[receiver].parkedLots) >= Core.lotsOfParking { return none }
    if Int(channels[channel].parkedLots) >= freeLotCount {
      let largest = parkedMost(above: channels[channel].parkedLots &+ 1)
      if largest == none { return none }
      if freeLotCount == 0 { evict(largest) }
    }
    let lot = freeLot
    freeLot = lots[lot].next
    freeLotCount &-= 1
    lots[lot] = Lot(next: none, read: 0, written: 0)
    if endpoints[receiver].parking == none {
      endpoints[receiver].parking = lot
      parked[parkedCount] = receiver
      parkedCount &+= 1
    } else {
      lots[endpoints[receiver].lastParked].next = lot
    }
    endpoints[receiver].lastParked = lot
    endpoints[receiver].parkedLots &+= 1
    channels[channel].parkedLots &+= 1
    return lot
  }

  /// A socket of the program that has most lots, if those are more than `least`; else `none`.
  @inline(never) @_noLocks
  private func parkedMost(above least: UInt32) -> UInt32 {
    var found = none
    var most = least
    var place = 0
    while place < parkedCount {
      let its = channels[endpoints[parked[place]].channel].parkedLots
      if its > most {
        found = parked[place]
        most = its
      }
      place &+= 1
    }
    return found
  }

  /// Drops what waits for a socket.
  @inline(never) @_noLocks
  private mutating func evict(_ receiver: UInt32) {
    while endpoints[receiver].parkedMessages != 0 {
      endpoints[receiver].parkedMessages &-= 1
      dropReceived(.receiveRingFull, receiver)
    }
    unpark(receiver)
  }

  /// Gives the first lot of a receiver's list back.
  @_noLocks
  private mutating func giveLot(of receiver: UInt32) {
    let lot = endpoints[receiver].parking
    endpoints[receiver].parking = lots[lot].next
    endpoints[receiver].parkedLots &-= 1
    channels[endpoints[receiver].channel].parkedLots &-= 1
    lots[lot].next = freeLot
    freeLot = lot
    freeLotCount &+= 1
  }

  /// Gives all lots of a receiver back, with whatever is left in them.
  @_noLocks
  mutating func unpark(_ receiver: UInt32) {
    while endpoints[receiver].parking != none { giveLot(of: receiver) }
    endpoints[receiver].parkedMessages = 0
    var place = 0
    while parked[place] != receiver { place &+= 1 }
    parkedCount &-= 1
    parked[place] = parked[parkedCount]
  }

  /// Moves what waits into RX rings that have room, for so many receivers; each time for others.
  @_noLocks
  private mutating func emptyParked(_ looks: Int) {
    var looks = min(parkedCount, looks)
    while looks > 0 && parkedCount != 0 {
      if parkedNext >= parkedCount { parkedNext = 0 }
      let receiver = parked[parkedNext]
      if unpark(whatFits: receiver) { unpark(receiver) } else { parkedNext &+= 1 }
      looks &-= 1
    }
    flushTouched()
  }

  /// - Returns: whether that was all.
  @_noLocks
  private mutating func unpark(whatFits receiver: UInt32) -> Bool {
    while endpoints[receiver].parking != none {
      let lot = endpoints[receiver].parking
      while lots[lot].read != lots[lot].written {
        let length = unsafe Int(record(in: lot, at: lots[lot].read, length: 0).header.pointee.length)
        let waiting = record(in: lot, at: lots[lot].read, length: length)
        guard isWithinLimit(length, receiver), let record = endpoints[receiver].writer.reserve(length) else { return false }
        unsafe record.base.copyMemory(from: waiting.base, byteCount: Int(MN_RECORD_HEADER) &+ length)
        if receiveLimit(of: receiver) != 0 { charge(record, length, receiver) }
        endpoints[receiver].writer.commit(record)
        count(length, deliveredTo: receiver)
        lots[lot].read &+= UInt32(truncatingIfNeeded: waiting.stride)
        endpoints[receiver].parkedMessages &-= 1
      }
      giveLot(of: receiver)
    }
    return true
  }

  // MARK: Senders that are to wait

  /// Asks a peer to send no more for a socket of ours, once.
  @inline(never) @_noLocks
  mutating func pause(_ endpoint: UInt32, _ session: UInt32, _ port: UInt32) {
    if endpoints[endpoint].parking == none
      && endpoints[endpoint].writer.measure() <= UInt64(endpoints[endpoint].rxCapacity / 2)
    {
      return
    }
    let generation = transports[port].generation(session)
    let localPort = endpoints[endpoint].localPort
    // (A pause that others of the session's words have overtaken may not have been believed.)
    if told[port].contains(session, generation, localPort) && now &- endpoints[endpoint].toldAt < Core.pauseAgain { return }
    if !endpoints[endpoint].isFull {
      if fullCount == full.count { return }
      full[fullCount] = Full(endpoint: endpoint, localPort: localPort)
      fullCount &+= 1
      endpoints[endpoint].isFull = true
    }
    if !transports[port].tell(session, .pause, localPort: localPort, remotePort: 0, now: now) { return }
    endpoints[endpoint].toldAt = now
    told[port].insert(session, generation, localPort)
  }

  /// Lets peers go on where there is room again, or nobody who needs any.
  @_noLocks
  private mutating func tellResumed(_ looks: Int) {
    var looks = min(fullCount, looks)
    while looks > 0 && fullCount != 0 {
      if fullNext >= fullCount { fullNext = 0 }
      let it = full[fullNext]
      // Of a socket that was closed meanwhile, or of another that has its place.
      let isGone =
        !endpoints[it.endpoint].isOpen || !endpoints[it.endpoint].isFull || endpoints[it.endpoint].localPort != it.localPort
      let hasRoom =
        isGone
        || endpoints[it.endpoint].parking == none
          && endpoints[it.endpoint].writer.pending <= UInt64(endpoints[it.endpoint].rxCapacity / 8)
      if hasRoom && tellResumed(of: it.localPort) {
        fullCount &-= 1
        full[fullNext] = full[fullCount]
        if !isGone { endpoints[it.endpoint].isFull = false }
      } else {
        fullNext &+= 1
      }
      looks &-= 1
    }
  }

  /// - Returns: whether everybody has been told who was told to pause.
  @_noLocks
  private mutating func tellResumed(of localPort: UInt16) -> Bool {
    var port: UInt32 = 0
    while Int(port) < portCount {
      var session: UInt32 = 0
      while told[port].count != 0 && Int(session) < told[port].sessions {
        let generation = transports[port].generation(session)
        if told[port].contains(session, generation, localPort) {
          if !transports[port].tell(session, .resume, localPort: localPort, remotePort: 0, now: now) { return false }
          told[port].remove(session, generation, localPort)
        }
        session &+= 1
      }
      port &+= 1
    }
    return true
  }

  // MARK: What peers say

  /// Whether a peer's socket has no room. `session` may be any number.
  @inline(never) @_noLocks
  func isPaused(_ port: UInt32, _ session: UInt32, _ remotePort: UInt16) -> Bool {
    Int(session) < paused[port].sessions
      && paused[port].contains(session, transports[port].generation(session), remotePort)
  }

  /// Notes whether a peer's socket has room.
  @_noLocks
  mutating func note(isPaused: Bool, _ port: UInt32, _ session: UInt32, _ remotePort: UInt16) {
    pausedCount &-= paused[port].count
    let generation = transports[port].generation(session)
    if isPaused {
      paused[port].insert(session, generation, remotePort)
    } else {
      paused[port].remove(session, generation, remotePort)
    }
    pausedCount &+= paused[port].count
  }

  /// Forgets what the peer of a session that has ended has said.
  @_noLocks
  mutating func forgetPaused(_ port: UInt32, _ session: UInt32) {
    pausedCount &-= paused[port].count
    paused[port].clear(session)
    pausedCount &+= paused[port].count
  }

  // MARK: Senders of ours that wait

  /// Takes an endpoint whose next datagram waits for a peer's socket off the active list, so that visits of it cost the others
  /// nothing. Its ready bit stays set: its program need not ring.
  @_noLocks
  mutating func hold(_ slot: UInt32, at place: Int) {
    endpoints[slot].emptyVisits = 0
    endpoints[slot].isHeld = true
    removeActive(place)
    endpoints[slot].place = heldCount
    held[heldCount] = slot
    heldCount &+= 1
  }

  /// Puts endpoints back whose datagram need not wait any more. Each time some are looked at, so that all have been in 64 rounds.
  @inline(never) @_noLocks
  mutating func lookAtHeld() {
    var looks = min(heldCount, max(Core.looks, heldCount >> 6))
    while looks > 0 && heldCount != 0 {
      if heldNext >= heldCount { heldNext = 0 }
      let slot = held[heldNext]
      if isPaused(endpoints[slot].heldPort, endpoints[slot].session, endpoints[slot].heldRemotePort)
        && now &- endpoints[slot].stalledSince < pauseLimit
      {
        heldNext &+= 1
      } else {
        release(held: heldNext)
        appendActive(slot)
      }
      looks &-= 1
    }
  }

  /// Takes an endpoint out of the list of those that wait.
  @_noLocks
  mutating func release(held place: Int) {
    endpoints[held[place]].isHeld = false
    heldCount &-= 1
    let moved = held[heldCount]
    held[place] = moved
    endpoints[moved].place = place
  }
}
