import MachnetMemory
public import MachnetWire

// From packets to messages.

extension Transport {
  /// Takes the UDP payload of a packet whose checksums are right.
  ///
  /// - Returns: the message, where the packet is the next in order, with one whole message and nothing else, as most are. Everything
  ///   else is told by `pollEvent`: call it until nil, before `payload` changes.
  @_noLocks
  public mutating func handle(_ payload: Bytes, _ arrival: Arrival, now: UInt64) -> (Message, Bytes)? {
    chunks = nil
    count(.packetsReceived)
    guard let packet = MachnetPacket(payload) else {
      count(MachnetPacket.isOtherVersion(payload) ? .otherVersion : .malformed)
      return nil
    }
    if _fastPath(packet.type == MachnetPacket.data) {
      let slot = find(tag: packet.tag)
      if slot != none && packet.flags & MachnetPacket.confirm == 0 && sessions[slot].state == .open {
        return takeData(packet, slot, arrival, now)
      }
      return takeEarlyData(packet, slot, arrival, now)
    }
    takeHandshake(packet, arrival, now)
    return nil
  }

  @inline(never) @_noLocks
  private mutating func takeHandshake(_ packet: MachnetPacket, _ arrival: Arrival, _ now: UInt64) {
    if packet.type == MachnetPacket.syn {
      takeSyn(packet, arrival, now: now)
    } else if packet.type == MachnetPacket.synAck {
      takeSynAck(packet, arrival, now: now)
    } else {
      takeReset(packet, arrival, now: now)
    }
  }

  /// A packet of a session that may be about to open.
  @inline(never) @_noLocks
  private mutating func takeEarlyData(_ packet: MachnetPacket, _ found: UInt32, _ arrival: Arrival, _ now: UInt64)
    -> (Message, Bytes)?
  {
    var slot = found
    if slot == none {
      if packet.flags & MachnetPacket.confirm == 0 {
        answerUnknown(packet, arrival, now: now)
        return nil
      }
      slot = takeConfirmation(packet, arrival, now: now)
      if slot == none { return nil }
    }
    if isMisaddressed(slot, arrival) { return nil }
    if sessions[slot].state == .opening {
      count(.malformed)
      return nil
    }
    if sessions[slot].state == .confirming { confirmed(slot, now: now) }
    let told = takeData(packet, slot, arrival, now)
    if packet.flags & MachnetPacket.confirm != 0 {
      // The opener repeats it until it hears from us.
      sessions[slot].ackNow = true
      makeReady(slot)
    }
    return told
  }

  @inline(__always) @_noLocks
  private func isMisaddressed(_ slot: UInt32, _ arrival: Arrival) -> Bool {
    if sessions[slot].remoteAddress == arrival.remoteAddress && sessions[slot].localAddress == arrival.localAddress {
      return false
    }
    count(.addressMismatch)
    return true
  }

  @inline(__always) @_noLocks
  private mutating func takeData(_ packet: MachnetPacket, _ slot: UInt32, _ arrival: Arrival, _ now: UInt64)
    -> (Message, Bytes)?
  {
    if isMisaddressed(slot, arrival) { return nil }
    sessions[slot].heardAt = now
    sessions[slot].receivedPackets &+= 1
    takeAcknowledgement(packet, slot, now)
    return packet.flags & MachnetPacket.numbered != 0 ? takeNumbered(packet, slot, now) : nil
  }

  @inline(__always) @_noLocks
  private mutating func takeNumbered(_ packet: MachnetPacket, _ slot: UInt32, _ now: UInt64) -> (Message, Bytes)? {
    let content = packet.rest
    guard packet.number == sessions[slot].expected && !sessions[slot].hasGap, let chunk = MachnetChunk(lone: content) else {
      takeOther(packet, slot, now)
      return nil
    }
    sessions[slot].expected &+= 1
    note(packet, slot, now, isInOrder: true)
    sessions[slot].messageAt = now
    count(.messagesReceived)
    return (message(chunk, slot), content.slice(MachnetChunk.headerLength))
  }

  /// A packet with anything but one whole message, or one that is not the next where none is missing.
  @inline(never) @_noLocks
  private mutating func takeOther(_ packet: MachnetPacket, _ slot: UInt32, _ now: UInt64) {
    let ahead = distance(sessions[slot].expected, packet.number)
    if ahead != 0 && !isNew(slot, ahead) { return }
    let content = packet.rest
    if !isAcceptable(content, slot, isInOrder: ahead == 0, now) { return }
    let isInOrder = ahead == 0 && !sessions[slot].hasGap
    if isInOrder { sessions[slot].expected &+= 1 } else { receivedAhead(slot, ahead) }
    note(packet, slot, now, isInOrder: isInOrder)
    if content.count == 0 { return }
    sessions[slot].messageAt = now
    chunks = content
    chunkSession = slot
  }

  /// A packet counts as received: it is to be acknowledged.
  @inline(__always) @_noLocks
  private mutating func note(_ packet: MachnetPacket, _ slot: UInt32, _ now: UInt64, isInOrder: Bool) {
    sessions[slot].echoTimestamp = packet.timestamp
    sessions[slot].echoArrival = now
    sessions[slot].hasEcho = true
    sessions[slot].echoWaited = waited
    sessions[slot].ackPending &+= 1
    if !isInOrder || packet.flags & MachnetPacket.ackNow != 0 || sessions[slot].ackPending >= Transport.ackEvery {
      sessions[slot].ackNow = true
      makeReady(slot)
    } else if sessions[slot].ackAt == 0 {
      sessions[slot].ackAt = now &+ options.ackDelay
      wheel.set(slot, sessions[slot].ackAt)
    }
  }

  /// Whether a packet that is not the expected one may be taken.
  @inline(never) @_noLocks
  private mutating func isNew(_ slot: UInt32, _ ahead: Int) -> Bool {
    if ahead >= Transport.windowMax {
      count(.beyondWindow)
      return false
    }
    if ahead > 0 && !hasReceived(slot, ahead &- 1) { return true }
    count(.duplicates)
    sessions[slot].sawDuplicate = true
    sessions[slot].ackNow = true
    makeReady(slot)
    return false
  }

  /// Notes a packet before or behind which others are missing.
  @inline(never) @_noLocks
  private func receivedAhead(_ slot: UInt32, _ ahead: Int) {
    if ahead == 0 { advance(slot) } else { setReceived(slot, ahead &- 1) }
    let words = sessions[slot].received
    sessions[slot].hasGap = words.0 | words.1 | words.2 | words.3 != 0
  }

  /// Packets after which an acknowledgement does not wait for company any more.
  static var ackEvery: UInt32 { @_noLocks get { 32 } }

  // MARK: What has been received. Bit i stands for packet expected + 1 + i.

  @inline(__always) @_noLocks
  private func hasReceived(_ slot: UInt32, _ bit: Int) -> Bool {
    let mask: UInt64 = 1 << UInt64(bit & 63)
    switch bit >> 6 {
    case 0: return sessions[slot].received.0 & mask != 0
    case 1: return sessions[slot].received.1 & mask != 0
    case 2: return sessions[slot].received.2 & mask != 0
    default: return sessions[slot].received.3 & mask != 0
    }
  }

  @inline(__always) @_noLocks
  private func setReceived(_ slot: UInt32, _ bit: Int) {
    let mask: UInt64 = 1 << UInt64(bit & 63)
    switch bit >> 6 {
    case 0: sessions[slot].received.0 |= mask
    case 1: sessions[slot].received.1 |= mask
    case 2: sessions[slot].received.2 |= mask
    default: sessions[slot].received.3 |= mask
    }
  }

  /// The expected packet has come: steps over it and over all that came before their turn.
  @_noLocks
  private func advance(_ slot: UInt32) {
    repeat {
      let words = sessions[slot].received
      let run = (~words.0).trailingZeroBitCount
      // The expected one, and the run of ones behind it; the zero bit after the run becomes the expected one.
      let step = run &+ 1
      sessions[slot].expected &+= UInt32(truncatingIfNeeded: step)
      if step >= 64 {
        sessions[slot].received = (words.1, words.2, words.3, 0)
        if run == 63 { return }
        // All 64 were there, and one more step has been made than the words were moved.
        sessions[slot].expected &-= 1
        continue
      }
      let left = UInt64(step)
      let right = 64 &- left
      sessions[slot].received = (
        words.0 >> left | words.1 << right, words.1 >> left | words.2 << right, words.2 >> left | words.3 << right,
        words.3 >> left
      )
      return
    } while true
  }

  /// SACK words that say something, 0...4.
  @inline(__always) @_noLocks
  func sackWords(_ slot: UInt32) -> Int {
    if !sessions[slot].hasGap { return 0 }
    let words = sessions[slot].received
    if words.3 != 0 { return 4 }
    if words.2 != 0 { return 3 }
    return words.1 != 0 ? 2 : 1
  }

  // MARK: Chunks

  /// Whether every chunk of a packet is well-formed and there is room for all that have to be kept. Only then is the
  /// packet acknowledged.
  @_noLocks
  private mutating func isAcceptable(_ content: Bytes, _ slot: UInt32, isInOrder: Bool, _ now: UInt64) -> Bool {
    var offset = 0
    while offset < content.count {
      guard let chunk = MachnetChunk(content.slice(offset)), chunk.total <= TransportOptions.messageMax
      else {
        count(.chunkMalformed)
        return false
      }
      if chunk.kind == MachnetChunk.piece && chunk.length != Int(chunk.total) && !hasRoom(chunk, slot, isInOrder, now) {
        return false
      }
      offset &+= MachnetChunk.headerLength &+ chunk.length
    }
    return true
  }

  /// Whether a piece is one, and its message has a context (which is made if need be).
  @_noLocks
  private mutating func hasRoom(_ chunk: MachnetChunk, _ slot: UInt32, _ isInOrder: Bool, _ now: UInt64) -> Bool {
    let piece = Int(sessions[slot].remotePiece)
    let total = Int(chunk.total)
    let offset = Int(chunk.offset)
    // All but the last are of one length and stand at multiples of it. One without bytes says that no more will come.
    let isLength = chunk.length == 0 ? offset != 0 && offset < total : chunk.length == min(piece, total &- offset)
    if offset % piece != 0 || !isLength {
      count(.chunkMalformed)
      return false
    }
    let index = assembly.find(slot, chunk.message)
    if index != none {
      if assembly.contexts[index].total == chunk.total { return true }
      count(.chunkMalformed)
      return false
    }
    // A session stages one such message at a time: what it began before, in order, is whole by now, or was given up.
    if isInOrder && assembly.holds(sessions[slot].begunAssembly, slot, sessions[slot].begunMessage) {
      count(.chunkMalformed)
      return false
    }
    let made = makeAssembly(slot, chunk.message, total: total, pieces: (total &+ piece &- 1) / piece, isInOrder, now)
    if made == none {
      count(.assemblyFull)
      if !sessions[slot].isShort {
        sessions[slot].isShort = true
        shortCount &+= 1
      }
      // The peer hears that the window is closed, and does not send in vain.
      sessions[slot].ackNow = true
      makeReady(slot)
      return false
    }
    if isInOrder {
      sessions[slot].begunAssembly = made
      sessions[slot].begunMessage = chunk.message
    }
    sessions[slot].assemblies &+= 1
    if Int(made) >= assembly.small { sessions[slot].largeAssemblies &+= 1 }
    if sessions[slot].isShort {
      sessions[slot].isShort = false
      shortCount &-= 1
    }
    return true
  }

  /// A context for a new message of a session's; `none`: there is none, or none for this session.
  ///
  /// A packet in order may have one more than its session's share, and the last ones of all: otherwise contexts could wait for
  /// messages that wait for contexts. Where there is none left, sessions end that keep one and do not go on.
  @_noLocks
  private mutating func makeAssembly(
    _ slot: UInt32, _ message: UInt32, total: Int, pieces: Int, _ isInOrder: Bool, _ now: UInt64
  ) -> UInt32 {
    let extra = isInOrder ? 1 : 0
    if Int(sessions[slot].assemblies) >= Assembly.most(of: options.assemblies) &+ extra { return none }
    if !assembly.isSmall(total, pieces)
      && Int(sessions[slot].largeAssemblies) >= Assembly.mostLarge(of: options.largeAssemblies) &+ extra
    {
      return none
    }
    if !isInOrder {
      return assembly.isLow(total: total, pieces: pieces)
        ? none : assembly.make(slot, message, total: total, pieces: pieces, now: now)
    }
    let made = assembly.make(slot, message, total: total, pieces: pieces, now: now)
    // What waits for this engine to run may well be the missing piece.
    if made != none || isCatchingUp { return made }
    let holder = assembly.stalled(total: total, pieces: pieces, except: slot, now: now)
    if holder == none { return none }
    count(.assembliesStalled)
    stop(holder, .timedOut)
    return assembly.make(slot, message, total: total, pieces: pieces, now: now)
  }

  /// The window that a session's packets tell, from the acknowledgement on: none while a message waits for an assembly, few
  /// while there are few (so that a message's pieces fit, and not many messages'), else what the SACK words can tell.
  @inline(__always) @_noLocks
  func window(_ slot: UInt32) -> Int {
    sessions[slot].isShort ? 0 : assembly.isLow ? Transport.windowLow : Transport.windowMax
  }

  static var windowLow: Int { @_noLocks get { 64 } }

  /// An assembly has come back: one of the sessions that wait for one is told so, each in its turn. Should that packet get
  /// lost, the peer asks.
  @_noLocks
  func closedWindow() -> UInt32 {
    var left = sessions.count
    var slot = shortNext
    while left != 0 {
      if Int(slot) >= sessions.count { slot = 0 }
      if sessions[slot].isShort { return slot }
      slot &+= 1
      left &-= 1
    }
    return none
  }

  @inline(never) @_noLocks
  mutating func openWindow() {
    if shortCount == 0 { return }
    let slot = closedWindow()
    if slot == none { return }
    shortNext = slot &+ 1
    sessions[slot].isShort = false
    shortCount &-= 1
    sessions[slot].ackNow = true
    makeReady(slot)
  }

  /// The next chunk of the packet that was handled last, as an event; those that complete nothing are none.
  @_noLocks
  mutating func nextChunk() -> Event? {
    while let content = chunks {
      guard content.count != 0, let chunk = MachnetChunk(content) else {
        chunks = nil
        return nil
      }
      let end = MachnetChunk.headerLength &+ chunk.length
      chunks = end == content.count ? nil : content.slice(end)
      let slot = chunkSession
      if chunk.kind != MachnetChunk.piece {
        // A pause that a resume has overtaken may have been taken back already; believed, it would last for ever. One too few
        // only costs the receiver room.
        let isLate = distance(sessions[slot].latestResume, chunk.message) <= 0
        if isLate && chunk.kind == MachnetChunk.pause { continue }
        if !isLate && chunk.kind == MachnetChunk.resume { sessions[slot].latestResume = chunk.message }
        let word: Word =
          chunk.kind == MachnetChunk.pause ? .pause : chunk.kind == MachnetChunk.resume ? .resume : .unreachable
        return .word(word, session: slot, localPort: chunk.destinationPort, remotePort: chunk.sourcePort)
      }
      let bytes = content.slice(MachnetChunk.headerLength, to: end)
      if chunk.length == Int(chunk.total) {
        count(.messagesReceived)
        return .message(message(chunk, slot), bytes)
      }
      let index = assembly.find(slot, chunk.message)
      if index == none { continue }
      let piece = Int(chunk.offset) / Int(sessions[slot].remotePiece)
      if chunk.length == 0 {
        if assembly.abandon(index, pieces: piece) { release(assembly: index) }
        continue
      }
      if assembly.put(index, piece: piece, offset: Int(chunk.offset), bytes, now: sessions[slot].heardAt) {
        if assembly.contexts[index].isAbandoned {
          release(assembly: index)
          continue
        }
        toldAssembly = index
        count(.messagesReceived)
        return .message(message(chunk, slot), assembly.content(index))
      }
    }
    return nil
  }

  @inline(__always) @_noLocks
  private func message(_ chunk: MachnetChunk, _ slot: UInt32) -> Message {
    Message(
      session: slot, localAddress: sessions[slot].localAddress, remoteAddress: sessions[slot].remoteAddress,
      localPort: chunk.destinationPort, remotePort: chunk.sourcePort, ttl: chunk.ttl, tos: chunk.tos)
  }

  @_noLocks
  mutating func release(assembly index: UInt32) {
    if !assembly.contexts[index].isUsed { return }
    let slot = assembly.contexts[index].session
    assembly.release(index)
    if sessions[slot].state != .free && sessions[slot].assemblies != 0 {
      sessions[slot].assemblies &-= 1
      if Int(index) >= assembly.small { sessions[slot].largeAssemblies &-= 1 }
    }
    openWindow()
  }
}
