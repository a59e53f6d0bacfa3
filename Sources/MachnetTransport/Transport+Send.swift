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
    precondition(payload.count <= TransportOptions.messageMax)
    let slot = progress?.session ?? preferred
    var state =
      progress
      ?? Progress(
        session: slot, generation: sessions[slot].generation, message: sessions[slot].nextMessage, offset: 0)
    if sessions[slot].generation != state.generation || sessions[slot].state != .open {
      return .lost
    }
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
      if state.offset == 0 { sessions[slot].nextMessage &+= 1 }
      state.offset = UInt32(truncatingIfNeeded: end)
    } while Int(state.offset) < payload.count
    sessions[slot].messageAt = now
    count(.messagesSent)
    return .done
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
    let room = Int(sessions[slot].datagramMax) &- MachnetPacket.headerLength
    var at = 0
    var start = 0
    let unsent = distance(sessions[slot].nextNumber, sessions[slot].staged)
    if unsent > 0 {
      at = place(slot, sessions[slot].staged &- 1)
      start = Int(slots[at].length)
    }
    let isPart = bytes.count != Int(chunk.total)
    if unsent <= 0 || start &+ size > room || slots[at].buffer == none || isPart && slots[at].part != .none {
      // A new packet, if the window has room and no more wait already than a round of the engine can send.
      if unsent >= Transport.stagedMax || distance(sessions[slot].base, sessions[slot].staged) >= Transport.windowMax {
        return false
      }
      let buffer = takeBuffer()
      if buffer == none { return false }
      at = place(slot, sessions[slot].staged)
      slots[at] = Slot(buffer: buffer)
      sessions[slot].staged &+= 1
      start = 0
    }
    let target = buffer(slots[at].buffer)
    chunk.emit(into: target.slice(start, to: start &+ MachnetChunk.headerLength))
    target.copy(bytes, to: start &+ MachnetChunk.headerLength)
    slots[at].length = UInt16(truncatingIfNeeded: start &+ size)
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
      let transmission = emit(slot, bytes, now)
      // Who sent something may have more, and waits for its turn; who did not has nothing, or may not send it now.
      readyHead &+= 1
      sessions[slot].isReady = false
      if sessions[slot].state == .free {
        freeSessions[freeSessionCount] = slot
        freeSessionCount &+= 1
        continue
      }
      if let transmission {
        if hasMore(slot) { makeReady(slot) }
        count(.packetsSent)
        return transmission
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
      if let number = lastInFlight(slot) { return emitNumbered(slot, number, bytes, now, isProbe: true) }
    }
    if mayTransmit(slot, now) {
      if sessions[slot].lost > 0, let number = firstLost(slot) {
        sessions[slot].lost &-= 1
        sessions[slot].inFlight &+= 1
        return emitNumbered(slot, number, bytes, now, isProbe: false)
      }
      let next = sessions[slot].nextNumber
      if next != sessions[slot].staged && distance(sessions[slot].base, next) < Int(sessions[slot].peerWindow) {
        return emitNext(slot, bytes, now)
      }
      if sessions[slot].pingNext && next == sessions[slot].staged
        && distance(sessions[slot].base, next) < Transport.windowMax
      {
        sessions[slot].pingNext = false
        slots[place(slot, next)] = Slot(buffer: none)
        sessions[slot].staged &+= 1
        return emitNext(slot, bytes, now)
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
    // Timeouts count from here when nothing was on its way.
    if sessions[slot].inFlight == 0 && sessions[slot].lost == 0 {
      sessions[slot].progressAt = now
      sessions[slot].timerFrom = now
    }
    sessions[slot].nextNumber &+= 1
    sessions[slot].inFlight &+= 1
    return emitNumbered(slot, number, bytes, now, isProbe: false)
  }

  @inline(__always) @_noLocks
  private mutating func emitNumbered(_ slot: UInt32, _ number: UInt32, _ bytes: Bytes, _ now: UInt64, isProbe: Bool)
    -> Transmission
  {
    let at = place(slot, number)
    let length = Int(slots[at].length)
    if slots[at].transmissions != 0 {
      count(.retransmissions)
      sessions[slot].retransmissions &+= 1
    }
    slots[at].state = .inFlight
    slots[at].sentAt = now
    slots[at].transmissions = slots[at].transmissions == 255 ? 255 : slots[at].transmissions &+ 1
    var flags = MachnetPacket.numbered
    // The last packet that the window allows, and any that repairs a loss: the sender waits for the answer.
    if isProbe || slots[at].transmissions > 1 || length == 0
      || Double(sessions[slot].inFlight) >= sessions[slot].congestion.window
    {
      flags |= MachnetPacket.ackNow
    }
    if sessions[slot].congestion.window < 1 {
      sessions[slot].paceAt = now &+ UInt64(Double(sessions[slot].smoothedRTT) / sessions[slot].congestion.window)
      arm(slot, sessions[slot].paceAt)
    }
    arm(slot, timeoutAt(slot))
    var words = sackWords(slot)
    if words != 0 && MachnetPacket.headerLength &+ 8 &* words &+ length > Int(sessions[slot].datagramMax) {
      // No room for it here: a packet of its own will say it.
      words = 0
    } else {
      acknowledged(slot)
    }
    let start = emitHead(slot, flags, number, words, bytes, now)
    if length != 0 { bytes.copy(buffer(slots[at].buffer).slice(0, to: length), to: start) }
    return transmission(slot, start &+ length)
  }

  @_noLocks
  private mutating func emitAck(_ slot: UInt32, _ bytes: Bytes, _ now: UInt64) -> Transmission {
    acknowledged(slot)
    count(.acksSent)
    return transmission(slot, emitHead(slot, 0, sessions[slot].nextNumber, sackWords(slot), bytes, now))
  }

  @inline(__always) @_noLocks
  private func acknowledged(_ slot: UInt32) {
    sessions[slot].ackNow = false
    sessions[slot].ackPending = 0
    sessions[slot].ackAt = 0
  }

  /// - Returns: where the chunks go.
  @inline(__always) @_noLocks
  private func emitHead(
    _ slot: UInt32, _ flags: UInt8, _ number: UInt32, _ words: Int, _ bytes: Bytes, _ now: UInt64
  ) -> Int {
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
    header.window = UInt16(Transport.windowMax)
    header.emit(into: bytes, sackWords: words)
    var at = MachnetPacket.headerLength
    if words != 0 {
      let received = sessions[slot].received
      bytes.set64(at, received.0)
      if words > 1 { bytes.set64(at &+ 8, received.1) }
      if words > 2 { bytes.set64(at &+ 16, received.2) }
      if words > 3 { bytes.set64(at &+ 24, received.3) }
      at &+= 8 &* words
    }
    sessions[slot].sentPackets &+= 1
    return at
  }

  @inline(__always) @_noLocks
  private func transmission(_ slot: UInt32, _ length: Int) -> Transmission {
    Transmission(
      localAddress: sessions[slot].localAddress, remoteAddress: sessions[slot].remoteAddress,
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
