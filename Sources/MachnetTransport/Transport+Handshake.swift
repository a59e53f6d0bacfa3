import MachnetMemory
import MachnetWire

// Opening a session: RSS-- (the paper's section on it). No engine can tell the NIC where a flow is to go; so the opener
// sprays SYNs over random port pairs until one lands on the engine that it wants, and that engine sprays SYN-ACKs over
// port pairs of its own until one lands on the opener's. The two searches are independent: either side repeats its own.
//
//   opener                              wanted engine
//   SYN (ports 1) ...                   (other engines ignore it)
//   SYN (ports k)          ------>      a half-open entry, a cookie
//                          <------      SYN-ACK (ports 1') ... (ports m'), naming k
//   confirmation by k      ------>      the cookie is right: a session
//   open                   <------      acknowledgement by m'
//
// A half-open entry only drives the repetition of SYN-ACKs. Everything that makes the session comes back with the
// confirmation, under the cookie's MAC, so a flood of SYNs can push entries out but not fill anything.

/// A SYN whose SYN-ACKs are being sprayed.
struct HalfOpen: BitwiseCopyable {
  var isUsed: Bool
  var remoteEngines: UInt8
  var remoteEngine: UInt8
  var localAddress: UInt32
  var remoteAddress: UInt32
  var remoteTag: UInt64
  /// Ours, if it becomes a session.
  var localTag: UInt64
  var first: UInt32
  var ports: PortPair
  var cookie: UInt64
  var cookieTime: UInt8
  var piece: UInt16
  var startedAt: UInt64
  var waveAt: UInt64
  var waveInterval: UInt64
  var waveLeft: UInt16
  var sprayed: UInt32
  /// The SYN's timestamp and its arrival, to be echoed.
  var timestamp: UInt32
}

extension Transport {
  /// What can be done for messages to a host.
  public enum Readiness {
    /// Messages can be sent on this session.
    case open(UInt32)
    /// A session is being opened; try again.
    case opening
    /// None can be had now.
    case refused(CloseReason)
  }

  /// The session for messages from `localAddress` to `remoteAddress`, opened if there is none.
  ///
  /// - Parameter datagramMax: largest UDP payload of the interface, bytes: at least 548.
  @_noLocks
  public mutating func session(localAddress: UInt32, remoteAddress: UInt32, datagramMax: Int, now: UInt64) -> Readiness {
    var slot = peers[peerBucket(localAddress, remoteAddress)] &- 1
    var isOpening = false
    while slot != none {
      if sessions[slot].remoteAddress == remoteAddress && sessions[slot].localAddress == localAddress {
        if sessions[slot].state == .open { return .open(slot) }
        isOpening = true
      }
      slot = sessions[slot].next
    }
    if isOpening { return .opening }
    if let reason = refusal(localAddress, remoteAddress, now) { return .refused(reason) }
    return open(localAddress, remoteAddress, datagramMax, now) ? .opening : .refused(.timedOut)
  }

  @_noLocks
  private func refusal(_ local: UInt32, _ remote: UInt32, _ now: UInt64) -> CloseReason? {
    let bucket = Int(peerBucket(local, remote)) & (Transport.refusalMax &- 1)
    let it = refusals[bucket]
    if it.localAddress == local && it.remoteAddress == remote && now < it.until { return it.reason }
    return nil
  }

  @_noLocks
  private mutating func refuse(_ local: UInt32, _ remote: UInt32, _ reason: CloseReason, _ now: UInt64) {
    let bucket = Int(peerBucket(local, remote)) & (Transport.refusalMax &- 1)
    refusals[bucket] = Refusal(
      localAddress: local, remoteAddress: remote, until: now &+ options.refusedFor, reason: reason)
    post(.refused(localAddress: local, remoteAddress: remote, reason: reason))
  }

  /// A tag that no session of ours has.
  @_noLocks
  private mutating func newTag() -> UInt64 {
    while true {
      let tag = random.next()
      if tag != 0 && find(tag: tag) == none { return tag }
    }
  }

  /// Numbers start just below the wrap, so that every session passes it soon. They need not be a secret: tags are.
  @_noLocks
  private mutating func firstNumber() -> UInt32 { 0 &- UInt32(truncatingIfNeeded: random.below(1024)) }

  @_noLocks
  private mutating func randomPorts() -> PortPair {
    PortPair(
      source: options.portBase &+ UInt16(truncatingIfNeeded: random.below(UInt64(options.portCount))),
      destination: options.portBase &+ UInt16(truncatingIfNeeded: random.below(UInt64(options.portCount))))
  }

  /// Bytes of a piece: what a packet holds beside its head and one chunk's.
  @inline(__always) @_noLocks
  func pieceLength(_ datagramMax: Int) -> Int {
    min(datagramMax, bufferSize) &- MachnetPacket.headerLength &- MachnetChunk.headerLength
  }

  @_noLocks
  private mutating func open(_ local: UInt32, _ remote: UInt32, _ datagramMax: Int, _ now: UInt64) -> Bool {
    var made = blank(local, remote, datagramMax, now)
    made.state = .opening
    made.isClient = true
    made.localTag = newTag()
    made.waveInterval = options.synInterval
    made.waveLeft = wave(engines: options.engines)
    made.remoteEngines = options.engines
    let slot = add(made)
    if slot == none { return false }
    scheduleWave(slot, now)
    makeReady(slot)
    return true
  }

  /// SYNs or SYN-ACKs at a time: few enough that those on the way when one has landed do not cost more than the wait
  /// that they save.
  @inline(__always) @_noLocks
  private func wave(engines: UInt8) -> UInt16 { max(1, UInt16(engines) / 4) }

  @_noLocks
  private mutating func blank(_ local: UInt32, _ remote: UInt32, _ datagramMax: Int, _ now: UInt64) -> Session {
    let first = firstNumber()
    let size = min(datagramMax, bufferSize)
    return Session(
      state: .free, isClient: false, isReady: false, remoteEngine: 0, remoteEngines: 0, localAddress: local,
      remoteAddress: remote, localTag: 0, remoteTag: 0, remoteEpoch: 0, ports: PortPair(source: 0, destination: 0),
      datagramMax: UInt16(truncatingIfNeeded: size), piece: UInt16(truncatingIfNeeded: pieceLength(datagramMax)),
      remotePiece: 0, next: none, generation: 0, openedAt: now, setUpTime: 0, waveAt: 0, waveInterval: 0, waveLeft: 0, sprayed: 0,
      confirmPorts: PortPair(source: 0, destination: 0), cookie: 0, cookieTime: 0, base: first, nextNumber: first,
      staged: first, launchedAt: 0, inFlight: 0, lost: 0, lostHint: first,
      peerWindow: UInt32(Transport.windowMax), nextMessage: 0 &- 64, pendingMessages: 0,
      isStaging: false, stagingMessage: 0, stagingTotal: 0, abandonedAt: 0, nextWord: 1, latestResume: 0, smoothedRTT: 0, varianceRTT: 0,
      minimumRTT: .max, nextMinimumRTT: .max, minimumUntil: 0, latestRTT: 0, latestWait: 0, rackSentAt: 0,
      reorderEighths: Transport.reorderEighthsLeast,
      reorderUntil: 0, backoff: 0, progressAt: now, timerFrom: now, timedOutAt: 0, probeSent: false, wantsProbe: false,
      congestion: CongestionControl(target: options.targetDelay), expected: 0, received: (0, 0, 0, 0), hasGap: false, ackPending: 0,
      ackNow: false, sawDuplicate: false, echoTimestamp: 0, echoArrival: 0, hasEcho: false, echoWaited: 0,
      assemblies: 0, largeAssemblies: 0, begunAssembly: none, begunMessage: 0, isShort: false, ackAt: 0, lossAt: 0, paceAt: 0, heardAt: now, messageAt: now, pingNext: false, sentPackets: 0,
      receivedPackets: 0, retransmissions: 0)
  }

  @_noLocks
  private mutating func scheduleWave(_ slot: UInt32, _ now: UInt64) {
    sessions[slot].waveAt = now &+ sessions[slot].waveInterval
    sessions[slot].waveInterval = grown(sessions[slot].waveInterval)
    wheel.set(slot, sessions[slot].waveAt)
  }

  /// An eighth longer each time, to 20 ms: paths may be long.
  @inline(__always) @_noLocks
  private func grown(_ interval: UInt64) -> UInt64 { min(interval &+ interval / 8, 20_000_000) }

  /// Timers of a session that is not open yet.
  @_noLocks
  mutating func tickOpening(_ slot: UInt32, _ now: UInt64) {
    if now &- sessions[slot].openedAt >= options.connectTimeout {
      count(.connectsFailed)
      let (local, remote) = (sessions[slot].localAddress, sessions[slot].remoteAddress)
      forget(slot)
      refuse(local, remote, .timedOut, now)
      return
    }
    if now >= sessions[slot].waveAt {
      sessions[slot].waveLeft = sessions[slot].state == .opening ? wave(engines: sessions[slot].remoteEngines) : 1
      makeReady(slot)
      scheduleWave(slot, now)
    } else {
      wheel.set(slot, sessions[slot].waveAt)
    }
  }

  // MARK: The opener

  /// Writes a SYN, or the confirmation, of a session that is not open yet.
  @_noLocks
  mutating func emitOpening(_ slot: UInt32, _ bytes: Bytes, _ now: UInt64) -> Transmission {
    sessions[slot].waveLeft &-= 1
    if sessions[slot].state == .confirming { return emitConfirmation(slot, bytes, now) }
    var header = MachnetHeader(type: MachnetPacket.syn, engine: options.engine, tag: sessions[slot].localTag)
    header.timestamp = timestamp(now)
    header.emit(into: bytes)
    MachnetOffer(
      epoch: options.epoch, first: sessions[slot].base, wanted: options.engine, engines: options.engines,
      piece: sessions[slot].piece
    ).emit(into: bytes.slice(MachnetPacket.headerLength))
    sessions[slot].sprayed &+= 1
    count(.synsSent)
    return Transmission(
      session: none, localAddress: sessions[slot].localAddress, remoteAddress: sessions[slot].remoteAddress, ports: randomPorts(),
      length: MachnetPacket.headerLength &+ MachnetOffer.length)
  }

  @_noLocks
  private mutating func emitConfirmation(_ slot: UInt32, _ bytes: Bytes, _ now: UInt64) -> Transmission {
    var header = MachnetHeader(type: MachnetPacket.data, engine: options.engine, tag: sessions[slot].remoteTag)
    header.flags = MachnetPacket.confirm | MachnetPacket.ackNow | MachnetPacket.echo
    header.number = sessions[slot].nextNumber
    header.ack = sessions[slot].expected
    header.timestamp = timestamp(now)
    header.echoed = echo(slot, now)
    header.window = UInt16(Transport.windowMax)
    header.emit(into: bytes)
    MachnetConfirmation(
      tag: sessions[slot].localTag, cookie: sessions[slot].cookie, epoch: options.epoch, first: sessions[slot].base,
      peerFirst: sessions[slot].expected, sourcePort: sessions[slot].confirmPorts.source,
      destinationPort: sessions[slot].confirmPorts.destination, engines: options.engines,
      cookieTime: sessions[slot].cookieTime, piece: sessions[slot].piece
    ).emit(into: bytes.slice(MachnetPacket.headerLength))
    sessions[slot].sprayed &+= 1
    return Transmission(
      session: none, localAddress: sessions[slot].localAddress, remoteAddress: sessions[slot].remoteAddress,
      ports: sessions[slot].ports, length: MachnetPacket.headerLength &+ MachnetConfirmation.length)
  }

  /// A SYN-ACK that landed here. Its ports are how the peer reaches this engine.
  @_noLocks
  mutating func takeSynAck(_ packet: MachnetPacket, _ arrival: Arrival, now: UInt64) {
    guard let answer = MachnetAnswer(packet.rest) else {
      count(.malformed)
      return
    }
    let slot = find(tag: packet.tag)
    guard slot != none, sessions[slot].state == .opening,
      sessions[slot].remoteAddress == arrival.remoteAddress, sessions[slot].localAddress == arrival.localAddress,
      owns(port: answer.sourcePort), owns(port: answer.destinationPort), answer.piece > 0, answer.tag != 0,
      answer.engines > 0
    else {
      count(.synAckUnexpected)
      return
    }
    sessions[slot].state = .confirming
    sessions[slot].remoteTag = answer.tag
    sessions[slot].remoteEpoch = answer.epoch
    sessions[slot].remoteEngine = packet.engine
    sessions[slot].remoteEngines = answer.engines
    sessions[slot].remotePiece = answer.piece
    sessions[slot].ports = PortPair(source: answer.sourcePort, destination: answer.destinationPort)
    sessions[slot].confirmPorts = arrival.ports
    sessions[slot].cookie = answer.cookie
    sessions[slot].cookieTime = answer.cookieTime
    sessions[slot].expected = answer.first
    sessions[slot].echoTimestamp = packet.timestamp
    sessions[slot].echoArrival = now
    sessions[slot].hasEcho = true
    if packet.flags & MachnetPacket.echo != 0 { sample(slot, packet, now) }
    sessions[slot].waveLeft = 1
    sessions[slot].waveInterval = options.synInterval
    makeReady(slot)
    scheduleWave(slot, now)
  }

  /// The answering engine has the session: so have we.
  @_noLocks
  mutating func confirmed(_ slot: UInt32, now: UInt64) {
    sessions[slot].state = .open
    sessions[slot].setUpTime = now &- sessions[slot].openedAt
    sessions[slot].heardAt = now
    sessions[slot].messageAt = now
    count(.sessionsOpened)
    endOthersOf(slot, now)
    post(.opened(session: slot))
    wheel.set(slot, now &+ options.keepaliveAfter)
  }

  // MARK: The answering engine

  /// A SYN. Nothing of it is believed, and nothing is kept but an entry of a small table.
  @_noLocks
  mutating func takeSyn(_ packet: MachnetPacket, _ arrival: Arrival, now: UInt64) {
    guard let offer = MachnetOffer(packet.rest), offer.engines > 0, offer.piece > 0, packet.tag != 0 else {
      count(.malformed)
      return
    }
    if offer.wanted % options.engines != options.engine {
      count(.synWrongEngine)
      return
    }
    var free = -1
    var oldest = 0
    var index = 0
    while index < Transport.halfOpenMax {
      if halfOpen[index].isUsed {
        if halfOpen[index].remoteTag == packet.tag && halfOpen[index].remoteAddress == arrival.remoteAddress
          && halfOpen[index].localAddress == arrival.localAddress
        {
          return
        }
        if halfOpen[index].startedAt < halfOpen[oldest].startedAt { oldest = index }
      } else if free < 0 {
        free = index
      }
      index &+= 1
    }
    if answerTokens == 0 && !refillAnswers(now) {
      count(.synLimited)
      return
    }
    if free < 0 { free = oldest }
    let time = UInt8(truncatingIfNeeded: now >> Transport.cookieShift)
    let tag = newTag()
    let first = firstNumber()
    let cookie = self.cookie(
      tag: tag, remoteTag: packet.tag, localAddress: arrival.localAddress, remoteAddress: arrival.remoteAddress,
      ports: arrival.ports, first: first, remoteFirst: offer.first, remoteEpoch: offer.epoch, engine: packet.engine,
      time: time)
    halfOpen[free] = HalfOpen(
      isUsed: true, remoteEngines: offer.engines, remoteEngine: packet.engine, localAddress: arrival.localAddress,
      remoteAddress: arrival.remoteAddress, remoteTag: packet.tag, localTag: tag, first: first, ports: arrival.ports,
      cookie: cookie, cookieTime: time, piece: UInt16(truncatingIfNeeded: pieceLength(arrival.datagramMax)),
      startedAt: now, waveAt: now, waveInterval: options.synAckInterval, waveLeft: 0, sprayed: 0,
      timestamp: packet.timestamp)
    halfOpenDue = min(halfOpenDue, now)
    expireHalfOpen(now)
  }

  /// Cookies are good for the time bucket that they were made in and the next one: 4 to 8 s.
  private static var cookieShift: UInt64 { @_noLocks get { 32 } }

  @_noLocks
  private func cookie(
    tag: UInt64, remoteTag: UInt64, localAddress: UInt32, remoteAddress: UInt32, ports: PortPair, first: UInt32,
    remoteFirst: UInt32, remoteEpoch: UInt64, engine: UInt8, time: UInt8
  ) -> UInt64 {
    var hash = SipHash(secret)
    hash.add(tag)
    hash.add(remoteTag)
    hash.add(UInt64(localAddress) << 32 | UInt64(remoteAddress))
    hash.add(UInt64(ports.source) << 32 | UInt64(ports.destination) << 16 | UInt64(engine) << 8 | UInt64(time))
    hash.add(UInt64(first) << 32 | UInt64(remoteFirst))
    hash.add(remoteEpoch)
    return hash.finish()
  }

  @_noLocks
  mutating func refillAnswers(_ now: UInt64) -> Bool {
    let earned = (now &- answerRefilled) / (1_000_000_000 / options.answerRate)
    if earned == 0 { return answerTokens != 0 }
    answerTokens = min(options.answerBurst, answerTokens &+ earned)
    answerRefilled = now
    return true
  }

  /// Starts the next wave of every entry that is due, and forgets those whose opener has had enough of them.
  @_noLocks
  mutating func expireHalfOpen(_ now: UInt64) {
    halfOpenDue = .max
    var index = 0
    while index < Transport.halfOpenMax {
      if halfOpen[index].isUsed {
        if now >= halfOpen[index].waveAt {
          // Far beyond what two engines need to find each other.
          let limit = 64 &+ 16 &* UInt32(halfOpen[index].remoteEngines)
          if halfOpen[index].sprayed > limit || now &- halfOpen[index].startedAt > options.connectTimeout {
            halfOpen[index].isUsed = false
            index &+= 1
            continue
          }
          halfOpen[index].waveLeft = wave(engines: halfOpen[index].remoteEngines)
          halfOpen[index].waveAt = now &+ halfOpen[index].waveInterval
          halfOpen[index].waveInterval = grown(halfOpen[index].waveInterval)
          halfOpenReady = true
        }
        halfOpenDue = min(halfOpenDue, halfOpen[index].waveAt)
      }
      index &+= 1
    }
  }

  /// Writes a SYN-ACK of some half-open entry.
  @_noLocks
  mutating func emitSynAck(_ bytes: Bytes, _ now: UInt64) -> Transmission? {
    var index = 0
    while index < Transport.halfOpenMax {
      if halfOpen[index].isUsed && halfOpen[index].waveLeft != 0 {
        if answerTokens == 0 && !refillAnswers(now) {
          count(.synLimited)
          halfOpen[index].waveLeft = 0
          index &+= 1
          continue
        }
        answerTokens &-= 1
        halfOpen[index].waveLeft &-= 1
        halfOpen[index].sprayed &+= 1
        var header = MachnetHeader(
          type: MachnetPacket.synAck, engine: options.engine, tag: halfOpen[index].remoteTag)
        header.flags = MachnetPacket.echo
        header.timestamp = timestamp(now)
        header.echoed = halfOpen[index].timestamp &+ timestamp(now &- halfOpen[index].startedAt)
        header.emit(into: bytes)
        MachnetAnswer(
          tag: halfOpen[index].localTag, cookie: halfOpen[index].cookie, epoch: options.epoch,
          first: halfOpen[index].first, sourcePort: halfOpen[index].ports.source,
          destinationPort: halfOpen[index].ports.destination, engines: options.engines,
          cookieTime: halfOpen[index].cookieTime, piece: halfOpen[index].piece
        ).emit(into: bytes.slice(MachnetPacket.headerLength))
        count(.synAcksSent)
        return Transmission(
          session: none, localAddress: halfOpen[index].localAddress, remoteAddress: halfOpen[index].remoteAddress,
          ports: randomPorts(), length: MachnetPacket.headerLength &+ MachnetAnswer.length)
      }
      index &+= 1
    }
    halfOpenReady = false
    return nil
  }

  /// A packet with a confirmation and a tag that is no session's: makes the session, if the cookie is ours.
  ///
  /// - Returns: the session, or `none`.
  @_noLocks
  mutating func takeConfirmation(_ packet: MachnetPacket, _ arrival: Arrival, now: UInt64) -> UInt32 {
    guard let it = MachnetConfirmation(packet.rest) else {
      count(.malformed)
      return none
    }
    let current = UInt8(truncatingIfNeeded: now >> Transport.cookieShift)
    let cookie = self.cookie(
      tag: packet.tag, remoteTag: it.tag, localAddress: arrival.localAddress, remoteAddress: arrival.remoteAddress,
      ports: arrival.ports, first: it.peerFirst, remoteFirst: it.first, remoteEpoch: it.epoch, engine: packet.engine,
      time: it.cookieTime)
    guard current &- it.cookieTime <= 1, cookie == it.cookie, !hasEnded(tag: packet.tag), it.piece > 0,
      it.engines > 0, owns(port: it.sourcePort), owns(port: it.destinationPort)
    else {
      count(.cookieWrong)
      return none
    }
    var index = 0
    while index < Transport.halfOpenMax {
      if halfOpen[index].isUsed && halfOpen[index].localTag == packet.tag { halfOpen[index].isUsed = false }
      index &+= 1
    }
    var made = blank(arrival.localAddress, arrival.remoteAddress, arrival.datagramMax, now)
    made.state = .open
    made.localTag = packet.tag
    made.remoteTag = it.tag
    made.remoteEpoch = it.epoch
    made.remoteEngine = packet.engine
    made.remoteEngines = it.engines
    made.remotePiece = it.piece
    made.ports = PortPair(source: it.sourcePort, destination: it.destinationPort)
    made.base = it.peerFirst
    made.nextNumber = it.peerFirst
    made.staged = it.peerFirst
    made.lostHint = it.peerFirst
    made.expected = it.first
    let slot = add(made)
    if slot == none { return none }
    if packet.flags & MachnetPacket.echo != 0 { sample(slot, packet, now) }
    cancelOpening(arrival)
    count(.sessionsOpened)
    endOthersOf(slot, now)
    post(.opened(session: slot))
    wheel.set(slot, now &+ options.keepaliveAfter)
    return slot
  }

  /// The peer was faster in opening a session that serves as well: ours is not needed, if the peer knows nothing of
  /// it yet.
  @_noLocks
  private mutating func cancelOpening(_ arrival: Arrival) {
    var at = peers[peerBucket(arrival.localAddress, arrival.remoteAddress)] &- 1
    while at != none {
      let next = sessions[at].next
      if sessions[at].state == .opening && sessions[at].remoteAddress == arrival.remoteAddress
        && sessions[at].localAddress == arrival.localAddress
      {
        forget(at)
      }
      at = next
    }
  }

  /// Ends sessions with an earlier life of the same host: it does not know them any more.
  @_noLocks
  private mutating func endOthersOf(_ slot: UInt32, _ now: UInt64) {
    let (local, remote) = (sessions[slot].localAddress, sessions[slot].remoteAddress)
    let epoch = sessions[slot].remoteEpoch
    var at = peers[peerBucket(local, remote)] &- 1
    while at != none {
      let next = sessions[at].next
      if at != slot && sessions[at].remoteAddress == remote && sessions[at].localAddress == local
        && sessions[at].state == .open && sessions[at].remoteEpoch != epoch
      {
        count(.sessionsRestarted)
        end(at, .restarted)
      }
      at = next
    }
  }

  // MARK: The end

  /// Forgets a session and says so.
  @_noLocks
  mutating func end(_ slot: UInt32, _ reason: CloseReason) {
    let lost = Int(sessions[slot].pendingMessages) &+ messagesWithGaps(slot)
    count(.messagesLost, lost)
    count(.sessionsClosed)
    let (local, remote) = (sessions[slot].localAddress, sessions[slot].remoteAddress)
    forget(slot)
    post(.closed(session: slot, localAddress: local, remoteAddress: remote, reason: reason, lost: lost))
  }

  /// Messages whose last packet is acknowledged, and another is not.
  @_noLocks
  private func messagesWithGaps(_ slot: UInt32) -> Int {
    var found = 0
    var number = sessions[slot].base
    while number != sessions[slot].nextNumber {
      let it = slots[place(slot, number)]
      if it.part == .end && it.state == .acknowledged && hasGap(slot, it.message, before: number) { found &+= 1 }
      number &+= 1
    }
    return found
  }

  @_noLocks
  private func hasGap(_ slot: UInt32, _ message: UInt32, before end: UInt32) -> Bool {
    var number = sessions[slot].base
    while number != end {
      let it = slots[place(slot, number)]
      if it.part == .begun && it.message == message && it.state != .acknowledged { return true }
      number &+= 1
    }
    return false
  }

  /// Closes a session at once: the peer is told by one packet, which may get lost; then it finds out by itself.
  @_noLocks
  public mutating func close(_ slot: UInt32) {
    if sessions[slot].state == .free { return }
    stop(slot, .closed)
  }

  /// Ends a session whose peer is still to hear of it.
  @_noLocks
  mutating func stop(_ slot: UInt32, _ reason: CloseReason) {
    if sessions[slot].state == .open { queueReset(to: slot) }
    end(slot, reason)
  }

  /// Closes every session: before the daemon ends. `pollTransmit` then gives the resets.
  @_noLocks
  public mutating func closeAll() {
    var slot: UInt32 = 0
    while Int(slot) < sessions.count {
      if sessions[slot].state != .free { close(slot) }
      // The ring of resets is small; whoever drains it calls again.
      if resetTail &- resetHead == UInt32(Transport.resetMax) { return }
      slot &+= 1
    }
  }

  @_noLocks
  private mutating func queueReset(to slot: UInt32) {
    queue(
      PendingReset(
        localAddress: sessions[slot].localAddress, remoteAddress: sessions[slot].remoteAddress,
        ports: sessions[slot].ports, tag: sessions[slot].remoteTag, isUnknown: false))
  }

  @_noLocks
  private mutating func queue(_ reset: PendingReset) {
    if resetTail &- resetHead == UInt32(Transport.resetMax) { return }
    resets[resetTail & UInt32(Transport.resetMax &- 1)] = reset
    resetTail &+= 1
  }

  /// Somebody uses a tag that we do not know: a session of an earlier life. The answer is sprayed, one packet each time, since
  /// the ports of that direction are forgotten.
  @_noLocks
  mutating func answerUnknown(_ packet: MachnetPacket, _ arrival: Arrival, now: UInt64) {
    count(.unknownTag)
    if answerTokens == 0 && !refillAnswers(now) { return }
    answerTokens &-= 1
    queue(
      PendingReset(
        localAddress: arrival.localAddress, remoteAddress: arrival.remoteAddress, ports: randomPorts(), tag: packet.tag,
        isUnknown: true))
  }

  @_noLocks
  mutating func emitReset(_ bytes: Bytes, _ now: UInt64) -> Transmission? {
    if resetHead == resetTail { return nil }
    let reset = resets[resetHead & UInt32(Transport.resetMax &- 1)]
    resetHead &+= 1
    var header = MachnetHeader(type: MachnetPacket.reset, engine: options.engine, tag: reset.tag)
    header.flags = reset.isUnknown ? MachnetPacket.unknownTag : 0
    header.timestamp = timestamp(now)
    header.emit(into: bytes)
    count(.resetsSent)
    return Transmission(
      session: none, localAddress: reset.localAddress, remoteAddress: reset.remoteAddress, ports: reset.ports,
      length: MachnetPacket.headerLength)
  }

  /// A reset: believed only from the session's peer, and only with a tag that nobody else knows.
  @_noLocks
  mutating func takeReset(_ packet: MachnetPacket, _ arrival: Arrival, now: UInt64) {
    var slot = none
    if packet.flags & MachnetPacket.unknownTag == 0 {
      slot = find(tag: packet.tag)
    } else if packet.tag != 0 {
      slot = peers[peerBucket(arrival.localAddress, arrival.remoteAddress)] &- 1
      while slot != none && (sessions[slot].remoteTag != packet.tag || sessions[slot].state == .opening) {
        slot = sessions[slot].next
      }
    }
    guard slot != none, sessions[slot].remoteAddress == arrival.remoteAddress,
      sessions[slot].localAddress == arrival.localAddress
    else {
      count(.resetIgnored)
      return
    }
    count(.sessionsReset)
    end(slot, .reset)
  }

  /// An ICMP port unreachable about a packet of ours: nobody there knows these ports. Sessions in use do not believe
  /// it; one that is being opened ends.
  ///
  /// - Parameter ports: of the packet that was sent.
  @_noLocks
  public mutating func unreachable(localAddress: UInt32, remoteAddress: UInt32, ports: PortPair, now: UInt64) {
    guard owns(port: ports.source), owns(port: ports.destination) else { return }
    var slot = peers[peerBucket(localAddress, remoteAddress)] &- 1
    while slot != none {
      let next = sessions[slot].next
      if sessions[slot].remoteAddress == remoteAddress && sessions[slot].localAddress == localAddress
        && sessions[slot].state == .opening
      {
        count(.connectsRefused)
        forget(slot)
        refuse(localAddress, remoteAddress, .unreachable, now)
        return
      }
      slot = next
    }
  }
}
