import MachnetMemory
public import MachnetWire

// From messages to packets.

extension Transport {
  /// A message that is being accepted piece by piece: its sender keeps this, and the rest of the bytes.
  public struct Progress: BitwiseCopyable {
    public var session: UInt32
    public var generation: UInt32
    public var message: UInt32
    public var offset: UInt32

    @inlinable @_noLocks
    public init(session: UInt32, generation: UInt32, message: UInt32, offset: UInt32) {
      self.session = session
      self.generation = generation
      self.message = message
      self.offset = offset
    }
  }

  /// What became of a message.
  public enum Sending {
    /// Accepted: it will be delivered once and whole, or its session is reported dead.
    case done
    /// No room now. Come again, with what says how much of it was accepted (nil: nothing).
    case blocked(Progress?)
    /// The session that had accepted a part of it is dead.
    case lost
  }

  /// Accepts a message of at most 8 MiB.
  ///
  /// - Parameters:
  ///   - preferred: for a new message; one that was begun goes on where it was begun, although another session with
  ///     the same host may have been opened meanwhile.
  ///   - ports: logical ports: ours, then the peer's.
  ///   - progress: of an earlier call for the same message that ended with `blocked`, else nil.
  @_noLocks
  public mutating func send(
    _ preferred: UInt32, _ payload: Bytes, localPort: UInt16, remotePort: UInt16, ttl: UInt8, tos: UInt8,
    progress: Progress?, now: UInt64
  ) -> Sending {
    if let progress {
      return sendPieces(progress, payload, localPort: localPort, remotePort: remotePort, ttl: ttl, tos: tos, now: now)
    }
    if payload.count <= Int(sessions[preferred].piece) {
      if sessions[preferred].state != .open { return .lost }
      return stageWhole(preferred, payload, localPort: localPort, remotePort: remotePort, ttl: ttl, tos: tos, now: now)
        ? .done : .blocked(nil)
    }
    let begin = Progress(
      session: preferred, generation: sessions[preferred].generation, message: sessions[preferred].nextMessage, offset: 0)
    return sendPieces(begin, payload, localPort: localPort, remotePort: remotePort, ttl: ttl, tos: tos, now: now)
  }

  /// Accepts a message, if it is a small one, `hint` is an open session between these hosts, and has room. What `session` and
  /// `send` do for every message, in fewer steps.
  ///
  /// - Parameter hint: any number.
  @_noLocks
  public mutating func sendWhole(
    _ hint: UInt32, _ payload: Bytes, localAddress: UInt32, remoteAddress: UInt32, localPort: UInt16, remotePort: UInt16,
    ttl: UInt8, tos: UInt8, now: UInt64
  ) -> Bool {
    isOpen(hint, localAddress, remoteAddress) && payload.count <= Int(sessions[hint].piece)
      && stageWhole(hint, payload, localPort: localPort, remotePort: remotePort, ttl: ttl, tos: tos, now: now)
  }

  /// As `sendWhole`, but the message has a packet to itself, and that is written into `bytes` at once: without the way through
  /// the list of those with something to send, where nothing is on it.
  ///
  /// - Returns: nil where that cannot be, or the session has sent a packet at this time already, so that this message may
  ///   share one with others; nothing has been accepted then.
  @_noLocks
  public mutating func sendAlone(
    _ hint: UInt32, _ payload: Bytes, localAddress: UInt32, remoteAddress: UInt32, localPort: UInt16, remotePort: UInt16,
    ttl: UInt8, tos: UInt8, into bytes: Bytes, now: UInt64
  ) -> Transmission? {
    if !isOpen(hint, localAddress, remoteAddress) || payload.count > Int(sessions[hint].piece) { return nil }
    let number = sessions[hint].nextNumber
    if number != sessions[hint].staged || sessions[hint].isReady || !isUnhindered(hint, number) || freeBufferCount == 0
      || sessions[hint].launchedAt == now
    {
      return nil
    }
    let chunk = whole(hint, payload.count, localPort: localPort, remotePort: remotePort, ttl: ttl, tos: tos)
    let length = MachnetChunk.headerLength &+ payload.count
    var it = Slot(buffer: takeBuffer())
    let kept = buffer(it.buffer).slice(0, to: length)
    chunk.emit(into: kept)
    kept.copy(payload, to: MachnetChunk.headerLength)
    it.length = UInt16(truncatingIfNeeded: length)
    it.messages = 1
    it.state = .inFlight
    it.sentAt = now
    it.transmissions = 1
    slots[place(hint, number)] = it
    sessions[hint].staged = number &+ 1
    sessions[hint].pendingMessages &+= 1
    accepted(hint, now)
    count(.packetsSent)
    launch(hint, number, now)
    let start = emitHead(hint, number, room: length, bytes, now, ackNow: isFull(hint))
    bytes.copy(kept, to: start)
    return transmission(hint, start &+ length)
  }

  @inline(__always) @_noLocks
  private func isOpen(_ slot: UInt32, _ localAddress: UInt32, _ remoteAddress: UInt32) -> Bool {
    Int(slot) < sessions.count && sessions[slot].remoteAddress == remoteAddress
      && sessions[slot].localAddress == localAddress && sessions[slot].state == .open
  }

  @inline(__always) @_noLocks
  private func whole(
    _ slot: UInt32, _ length: Int, localPort: UInt16, remotePort: UInt16, ttl: UInt8, tos: UInt8
  ) -> MachnetChunk {
    MachnetChunk(
      message: sessions[slot].nextMessage, total: UInt32(truncatingIfNeeded: length), offset: 0, kind: MachnetChunk.piece,
      length: length, sourcePort: localPort, destinationPort: remotePort, ttl: ttl, tos: tos)
  }

  @inline(__always) @_noLocks
  private func accepted(_ slot: UInt32, _ now: UInt64) {
    sessions[slot].nextMessage &+= 1
    sessions[slot].messageAt = now
    count(.messagesSent)
  }

  /// Writes a chunk into a packet's buffer, behind `start` bytes of others.
  @inline(__always) @_noLocks
  private func put(_ chunk: MachnetChunk, _ bytes: Bytes, into at: Int, _ start: Int) {
    let end = start &+ MachnetChunk.headerLength &+ bytes.count
    let target = buffer(slots[at].buffer).slice(start, to: end)
    chunk.emit(into: target)
    target.copy(bytes, to: MachnetChunk.headerLength)
    slots[at].length = UInt16(truncatingIfNeeded: end)
  }

  @inline(__always) @_noLocks
  private mutating func stageWhole(
    _ slot: UInt32, _ payload: Bytes, localPort: UInt16, remotePort: UInt16, ttl: UInt8, tos: UInt8, now: UInt64
  ) -> Bool {
    let chunk = whole(slot, payload.count, localPort: localPort, remotePort: remotePort, ttl: ttl, tos: tos)
    if !stage(slot, chunk, payload, endsMessage: true, now) { return false }
    accepted(slot, now)
    return true
  }

  @inline(never) @_noLocks
  private mutating func sendPieces(
    _ progress: Progress, _ payload: Bytes, localPort: UInt16, remotePort: UInt16, ttl: UInt8, tos: UInt8, now: UInt64
  ) -> Sending {
    precondition(payload.count <= TransportOptions.messageMax)
    let slot = progress.session
    if sessions[slot].generation != progress.generation || sessions[slot].state != .open { return .lost }
    var state = progress
    if state.offset == 0 && sessions[slot].isStaging && !tellAbandoned(slot, now) { return .blocked(nil) }
    let piece = Int(sessions[slot].piece)
    var chunk = MachnetChunk(
      message: state.message, total: UInt32(truncatingIfNeeded: payload.count), offset: state.offset,
      kind: MachnetChunk.piece, length: 0, sourcePort: localPort, destinationPort: remotePort, ttl: ttl, tos: tos)
    repeat {
      chunk.offset = state.offset
      chunk.length = min(piece, payload.count &- Int(state.offset))
      let end = Int(state.offset) &+ chunk.length
      guard stage(slot, chunk, payload.slice(Int(state.offset), to: end), endsMessage: end == payload.count, now) else {
        return .blocked(state.offset == 0 ? nil : state)
      }
      if state.offset == 0 {
        sessions[slot].nextMessage &+= 1
        sessions[slot].isStaging = true
        sessions[slot].stagingMessage = state.message
        sessions[slot].stagingTotal = chunk.total
        sessions[slot].abandonedAt = 0
      }
      state.offset = UInt32(truncatingIfNeeded: end)
    } while Int(state.offset) < payload.count
    sessions[slot].isStaging = false
    sessions[slot].messageAt = now
    count(.messagesSent)
    return .done
  }

  /// Gives up a message of which the beginning was accepted: the peer hears that the rest will not come, as soon as there is
  /// room for that.
  @_noLocks
  public mutating func abandon(_ progress: Progress, now: UInt64) {
    let slot = progress.session
    if sessions[slot].generation != progress.generation || sessions[slot].state != .open || !sessions[slot].isStaging
      || sessions[slot].stagingMessage != progress.message
    {
      return
    }
    sessions[slot].abandonedAt = progress.offset
    _ = tellAbandoned(slot, now)
  }

  /// - Returns: whether the session is free for another message in several pieces.
  @_noLocks
  mutating func tellAbandoned(_ slot: UInt32, _ now: UInt64) -> Bool {
    if sessions[slot].abandonedAt == 0 { return false }
    let chunk = MachnetChunk(
      message: sessions[slot].stagingMessage, total: sessions[slot].stagingTotal, offset: sessions[slot].abandonedAt,
      kind: MachnetChunk.piece, length: 0, sourcePort: 0, destinationPort: 0, ttl: 0, tos: 0)
    if !stage(slot, chunk, unsafe Bytes(unsafe: buffers.base, count: 0), endsMessage: true, now) { return false }
    sessions[slot].isStaging = false
    sessions[slot].abandonedAt = 0
    return true
  }

  /// Tells the peer something about our socket at `localPort`.
  ///
  /// - Parameter remotePort: whose messages it concerns; 0: everybody's.
  /// - Returns: false when there is no room for this now.
  @_noLocks
  public mutating func tell(_ slot: UInt32, _ word: Word, localPort: UInt16, remotePort: UInt16, now: UInt64) -> Bool {
    if sessions[slot].state != .open { return true }
    let kind: UInt8 =
      switch word {
      case .pause: MachnetChunk.pause
      case .resume: MachnetChunk.resume
      case .unreachable: MachnetChunk.unreachable
      }
    let chunk = MachnetChunk(
      message: sessions[slot].nextWord, total: 0, offset: 0, kind: kind, length: 0, sourcePort: localPort, destinationPort: remotePort,
      ttl: 0, tos: 0)
    if !stage(slot, chunk, unsafe Bytes(unsafe: buffers.base, count: 0), endsMessage: false, now) { return false }
    sessions[slot].nextWord &+= 1
    return true
  }

  /// Puts a chunk into the packet that is being filled, or into a new one.
  @inline(__always) @_noLocks
  private mutating func stage(_ slot: UInt32, _ chunk: MachnetChunk, _ bytes: Bytes, endsMessage: Bool, _ now: UInt64)
    -> Bool
  {
    let size = MachnetChunk.headerLength &+ bytes.count
    let isPart = bytes.count != Int(chunk.total)
    let staged = sessions[slot].staged
    let unsent = distance(sessions[slot].nextNumber, staged)
    var at = place(slot, staged &- 1)
    var start = Int(slots[at].length)
    if unsent <= 0 || start &+ size > Int(sessions[slot].datagramMax) &- MachnetPacket.headerLength
      || slots[at].buffer == none || isPart && slots[at].part != .none
    {
      // A new packet, if the window has room and no more wait already than a round of the engine can send.
      if unsent >= Transport.stagedMax || distance(sessions[slot].base, staged) >= Transport.windowMax || freeBufferCount == 0 {
        return false
      }
      at = place(slot, staged)
      start = 0
      slots[at] = Slot(buffer: takeBuffer())
      sessions[slot].staged = staged &+ 1
    }
    put(chunk, bytes, into: at, start)
    if isPart {
      slots[at].part = endsMessage ? .end : .begun
      slots[at].message = chunk.message
    }
    if endsMessage {
      slots[at].messages &+= 1
      sessions[slot].pendingMessages &+= 1
    }
    makeReady(slot)
    return true
  }

  /// Packets of a session that may wait to be sent; more stays with the senders.
  static var stagedMax: Int { @_noLocks get { 32 } }

  // MARK: Packets out

  /// The next packet to send, written into `bytes` (at least the largest `datagramMax`).
  ///
  /// - Returns: nil when there is nothing more to send now.
  @_noLocks
  public mutating func pollTransmit(into bytes: Bytes, now: UInt64) -> Transmission? {
    if resetHead != resetTail { return emitReset(bytes, now) }
    if halfOpenReady, let transmission = emitSynAck(bytes, now) { return transmission }
    let mask = UInt32(truncatingIfNeeded: ready.count &- 1)
    while readyHead != readyTail {
      let slot = ready[readyHead & mask]
      readyHead &+= 1
      sessions[slot].isReady = false
      if let transmission = emit(slot, bytes, now) {
        // Who sent something may have more, and waits for its turn; who did not has nothing, or may not send it now.
        if hasMore(slot) { makeReady(slot) }
        count(.packetsSent)
        return transmission
      }
      if sessions[slot].state == .free {
        freeSessions[freeSessionCount] = slot
        freeSessionCount &+= 1
      }
    }
    return nil
  }

  /// Whether a session has something to send, if it may.
  @inline(__always) @_noLocks
  func hasMore(_ slot: UInt32) -> Bool {
    sessions[slot].nextNumber != sessions[slot].staged || sessions[slot].lost != 0 || sessions[slot].ackNow
      || sessions[slot].pingNext || sessions[slot].wantsProbe || sessions[slot].state != .open
  }

  @inline(__always) @_noLocks
  private mutating func emit(_ slot: UInt32, _ bytes: Bytes, _ now: UInt64) -> Transmission? {
    // Nearly always: the next packet of an open session that has lost none.
    let next = sessions[slot].nextNumber
    if sessions[slot].state == .open && next != sessions[slot].staged && !sessions[slot].wantsProbe && isUnhindered(slot, next) {
      return emitNext(slot, bytes, now)
    }
    return emitOther(slot, bytes, now)
  }

  /// Whether a new packet may go at once: nothing has to be repaired first, both windows have room, and there is no pacing.
  @inline(__always) @_noLocks
  private func isUnhindered(_ slot: UInt32, _ number: UInt32) -> Bool {
    let window = sessions[slot].congestion.window
    return sessions[slot].lost == 0 && window >= 1 && Double(sessions[slot].inFlight) < window
      && distance(sessions[slot].base, number) < Int(sessions[slot].peerWindow)
  }

  @inline(never) @_noLocks
  private mutating func emitOther(_ slot: UInt32, _ bytes: Bytes, _ now: UInt64) -> Transmission? {
    switch sessions[slot].state {
    case .free:
      return nil
    case .opening, .confirming:
      return sessions[slot].waveLeft == 0 ? nil : emitOpening(slot, bytes, now)
    case .open:
      break
    }
    if sessions[slot].wantsProbe {
      sessions[slot].wantsProbe = false
      if let number = sessions[slot].peerWindow == 0 ? oldest(slot) : lastInFlight(slot) {
        return emitAgain(slot, number, bytes, now)
      }
    }
    if mayTransmit(slot, now) {
      if sessions[slot].lost > 0, let number = firstLost(slot),
        distance(sessions[slot].base, number) < Int(sessions[slot].peerWindow)
      {
        sessions[slot].lost &-= 1
        sessions[slot].inFlight &+= 1
        return emitAgain(slot, number, bytes, now)
      }
      let next = sessions[slot].nextNumber
      // With nothing on its way there is no timer that would ask for a window.
      if next != sessions[slot].staged && distance(sessions[slot].base, next) < max(1, Int(sessions[slot].peerWindow)) {
        return emitPaced(slot, bytes, now)
      }
      if sessions[slot].pingNext && next == sessions[slot].staged
        && distance(sessions[slot].base, next) < Transport.windowMax
      {
        sessions[slot].pingNext = false
        slots[place(slot, next)] = Slot(buffer: none)
        sessions[slot].staged &+= 1
        return emitPaced(slot, bytes, now)
      }
    }
    if sessions[slot].ackNow { return emitAck(slot, bytes, now) }
    return nil
  }

  /// Whether the window of congestion control lets a packet go.
  @inline(__always) @_noLocks
  private mutating func mayTransmit(_ slot: UInt32, _ now: UInt64) -> Bool {
    let window = sessions[slot].congestion.window
    if window >= 1 { return Double(sessions[slot].inFlight) < window }
    if sessions[slot].inFlight > 0 { return false }
    if sessions[slot].paceAt != 0 && now < sessions[slot].paceAt { return false }
    sessions[slot].paceAt = 0
    return true
  }

  /// The packet that a closed window is asked with.
  @_noLocks
  private mutating func oldest(_ slot: UInt32) -> UInt32? {
    let number = sessions[slot].base
    if number == sessions[slot].nextNumber { return nil }
    if slots[place(slot, number)].state == .lost {
      sessions[slot].lost &-= 1
      sessions[slot].inFlight &+= 1
    }
    return number
  }

  @_noLocks
  private func lastInFlight(_ slot: UInt32) -> UInt32? {
    var number = sessions[slot].nextNumber
    while number != sessions[slot].base {
      number &-= 1
      if slots[place(slot, number)].state == .inFlight { return number }
    }
    return nil
  }

  @_noLocks
  private func firstLost(_ slot: UInt32) -> UInt32? {
    var number = sessions[slot].lostHint
    if distance(number, sessions[slot].base) > 0 { number = sessions[slot].base }
    while number != sessions[slot].nextNumber {
      if slots[place(slot, number)].state == .lost {
        sessions[slot].lostHint = number
        return number
      }
      number &+= 1
    }
    return nil
  }

  @inline(__always) @_noLocks
  private mutating func emitNext(_ slot: UInt32, _ bytes: Bytes, _ now: UInt64) -> Transmission {
    let number = sessions[slot].nextNumber
    launch(slot, number, now)
    let at = place(slot, number)
    slots[at].transmissions = 1
    return emitNumbered(slot, number, bytes, now, ackNow: isFull(slot) || slots[at].length == 0)
  }

  /// Counts a new packet as one that is on its way.
  @inline(__always) @_noLocks
  private mutating func launch(_ slot: UInt32, _ number: UInt32, _ now: UInt64) {
    sessions[slot].nextNumber = number &+ 1
    sessions[slot].launchedAt = now
    sessions[slot].inFlight &+= 1
    // Timeouts count from here when nothing was on its way.
    if sessions[slot].inFlight == 1 && sessions[slot].lost == 0 {
      sessions[slot].progressAt = now
      sessions[slot].timerFrom = now
      setTimeout(slot, now)
    }
  }

  /// Whether the last packet was the last that the window allows: the sender waits for the answer.
  @inline(__always) @_noLocks
  private mutating func isFull(_ slot: UInt32) -> Bool { Double(sessions[slot].inFlight) >= sessions[slot].congestion.window }

  /// The next packet, of a session that may have a window below one.
  @inline(never) @_noLocks
  private mutating func emitPaced(_ slot: UInt32, _ bytes: Bytes, _ now: UInt64) -> Transmission {
    if sessions[slot].congestion.window < 1 { pace(slot, now) }
    return emitNext(slot, bytes, now)
  }

  /// A packet that was sent before, with the wish for an answer at once.
  @inline(never) @_noLocks
  private mutating func emitAgain(_ slot: UInt32, _ number: UInt32, _ bytes: Bytes, _ now: UInt64) -> Transmission {
    if sessions[slot].congestion.window < 1 { pace(slot, now) }
    let at = place(slot, number)
    count(.retransmissions)
    sessions[slot].retransmissions &+= 1
    if slots[at].transmissions != 255 { slots[at].transmissions &+= 1 }
    return emitNumbered(slot, number, bytes, now, ackNow: true)
  }

  @inline(__always) @_noLocks
  private mutating func emitNumbered(_ slot: UInt32, _ number: UInt32, _ bytes: Bytes, _ now: UInt64, ackNow: Bool)
    -> Transmission
  {
    let at = place(slot, number)
    let length = Int(slots[at].length)
    slots[at].state = .inFlight
    slots[at].sentAt = now
    let start = emitHead(slot, number, room: length, bytes, now, ackNow: ackNow)
    if length != 0 { bytes.copy(buffer(slots[at].buffer).slice(0, to: length), to: start) }
    return transmission(slot, start &+ length)
  }

  /// A window below one packet: when the next one may go.
  @inline(never) @_noLocks
  private mutating func pace(_ slot: UInt32, _ now: UInt64) {
    sessions[slot].paceAt = now &+ UInt64(Double(sessions[slot].smoothedRTT) / sessions[slot].congestion.window)
    wheel.set(slot, sessions[slot].paceAt)
  }

  @_noLocks
  private mutating func emitAck(_ slot: UInt32, _ bytes: Bytes, _ now: UInt64) -> Transmission {
    acknowledged(slot)
    count(.acksSent)
    return transmission(slot, emitHead(slot, 0, sessions[slot].nextNumber, sackWords: sackWords(slot), bytes, now))
  }

  @inline(__always) @_noLocks
  private mutating func acknowledged(_ slot: UInt32) {
    sessions[slot].ackNow = false
    sessions[slot].ackPending = 0
    sessions[slot].ackAt = 0
  }

  /// Writes the head of a numbered packet with what is to be acknowledged, if that fits beside `length` bytes.
  ///
  /// - Returns: where the chunks go.
  @inline(__always) @_noLocks
  private mutating func emitHead(
    _ slot: UInt32, _ number: UInt32, room length: Int, _ bytes: Bytes, _ now: UInt64, ackNow: Bool
  ) -> Int {
    let flags = ackNow ? MachnetPacket.numbered | MachnetPacket.ackNow : MachnetPacket.numbered
    let words = sackWords(slot)
    if words != 0 && MachnetPacket.headerLength &+ 8 &* words &+ length <= Int(sessions[slot].datagramMax) {
      acknowledged(slot)
      return emitHead(slot, flags, number, sackWords: words, bytes, now)
    }
    // Without room for them, a packet of its own will say it.
    if words == 0 { acknowledged(slot) }
    emitHead(slot, flags, number, bytes, now)
    return MachnetPacket.headerLength
  }

  /// Writes the head of a packet of an open session.
  @inline(__always) @_noLocks
  private mutating func emitHead(
    _ slot: UInt32, _ flags: UInt8, _ number: UInt32, _ bytes: Bytes, _ now: UInt64, announcing words: Int = 0
  ) {
    var header = MachnetHeader(type: MachnetPacket.data, engine: options.engine, tag: sessions[slot].remoteTag)
    header.flags = flags
    if sessions[slot].hasEcho {
      header.flags |= MachnetPacket.echo
      header.echoed = echo(slot, now)
      header.waited = sessions[slot].echoWaited
    }
    if sessions[slot].sawDuplicate {
      header.flags |= MachnetPacket.duplicate
      sessions[slot].sawDuplicate = false
    }
    header.number = number
    header.ack = sessions[slot].expected
    header.timestamp = timestamp(now)
    header.window = UInt16(truncatingIfNeeded: window(slot))
    header.emit(into: bytes, sackWords: words)
    sessions[slot].sentPackets &+= 1
  }

  /// The same, with words of SACK behind it.
  ///
  /// - Returns: where the chunks go.
  @inline(never) @_noLocks
  private mutating func emitHead(
    _ slot: UInt32, _ flags: UInt8, _ number: UInt32, sackWords words: Int, _ bytes: Bytes, _ now: UInt64
  ) -> Int {
    emitHead(slot, flags, number, bytes, now, announcing: words)
    let received = sessions[slot].received
    let at = MachnetPacket.headerLength
    if words > 0 { bytes.set64(at, received.0) }
    if words > 1 { bytes.set64(at &+ 8, received.1) }
    if words > 2 { bytes.set64(at &+ 16, received.2) }
    if words > 3 { bytes.set64(at &+ 24, received.3) }
    return at &+ 8 &* words
  }

  @inline(__always) @_noLocks
  private mutating func transmission(_ slot: UInt32, _ length: Int) -> Transmission {
    Transmission(
      session: slot, localAddress: sessions[slot].localAddress, remoteAddress: sessions[slot].remoteAddress,
      ports: sessions[slot].ports, length: length)
  }

  // MARK: For those who look

  /// What `machnet status` shows of a session.
  public struct SessionSnapshot: Sendable {
    public var localAddress: UInt32
    public var remoteAddress: UInt32
    public var remoteEngine: UInt8
    public var isOpen: Bool
    public var setUpTime: UInt64
    public var smoothedRTT: UInt64
    public var minimumRTT: UInt64
    public var congestionWindow: Double
    public var inFlight: Int
    public var packetsSent: UInt64
    public var packetsReceived: UInt64
    public var retransmissions: UInt64
  }

  /// Tells the uses of a session's slot apart.
  @_noLocks
  public func generation(_ slot: UInt32) -> UInt32 { sessions[slot].generation }

  /// Sessions that there are, and that there can be.
  public var sessionCount: Int { @_noLocks get { sessions.count &- freeSessionCount } }
  public var sessionCapacity: Int { @_noLocks get { sessions.count } }

  /// - Returns: nil where there is no session.
  @_noLocks
  public func snapshot(_ slot: UInt32) -> SessionSnapshot? {
    let it = sessions[slot]
    if it.state == .free { return nil }
    return SessionSnapshot(
      localAddress: it.localAddress, remoteAddress: it.remoteAddress, remoteEngine: it.remoteEngine,
      isOpen: it.state == .open, setUpTime: it.setUpTime, smoothedRTT: it.smoothedRTT, minimumRTT: it.minimumRTT == .max ? 0 : it.minimumRTT,
      congestionWindow: it.congestion.window, inFlight: Int(it.inFlight), packetsSent: it.sentPackets,
      packetsReceived: it.receivedPackets, retransmissions: it.retransmissions)
  }
}
