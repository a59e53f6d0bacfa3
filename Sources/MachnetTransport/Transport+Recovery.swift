import MachnetMemory
import MachnetWire

// What was sent, and whether it has arrived: SACK, RACK-TLP (RFC 8985), a retransmission timeout (RFC 6298).

extension Transport {
  /// Units of timestamps: 64 ns.
  @inline(__always) @_noLocks
  func timestamp(_ time: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: time >> 6) }

  /// The peer's last timestamp, moved on by the time that we have had it.
  @inline(__always) @_noLocks
  func echo(_ slot: UInt32, _ now: UInt64) -> UInt32 {
    sessions[slot].echoTimestamp &+ timestamp(now &- sessions[slot].echoArrival)
  }

  /// Cumulative acknowledgement, SACK words, window and echo of any packet of an open session.
  @inline(__always) @_noLocks
  mutating func takeAcknowledgement(_ packet: MachnetPacket, _ slot: UInt32, _ now: UInt64) {
    let base = sessions[slot].base
    let outstanding = distance(base, sessions[slot].nextNumber)
    let advance = distance(base, packet.ack)
    // Older than what we know already (packets overtake each other), or about what was never sent.
    if advance < 0 { return }
    if advance > outstanding {
      count(.ackInvalid)
      return
    }
    let window = min(UInt32(packet.window), UInt32(Transport.windowMax))
    if window != 0 && sessions[slot].peerWindow == 0 { reopened(slot, now) }
    sessions[slot].peerWindow = window
    if outstanding != 0 { takeAcknowledgementOfSent(packet, slot, now) }
  }

  /// The same where packets are on their way.
  @inline(never) @_noLocks
  private mutating func takeAcknowledgementOfSent(_ packet: MachnetPacket, _ slot: UInt32, _ now: UInt64) {
    var newly = 0
    var number = sessions[slot].base
    while number != packet.ack {
      let at = place(slot, number)
      if slots[at].state == .inFlight && slots[at].transmissions == 1 {
        sessions[slot].inFlight &-= 1
        sessions[slot].rackSentAt = max(sessions[slot].rackSentAt, slots[at].sentAt)
        arrived(slot, at)
        newly &+= 1
      } else {
        newly &+= acknowledge(slot, number, now)
      }
      number &+= 1
    }
    sessions[slot].base = packet.ack
    if distance(sessions[slot].lostHint, packet.ack) > 0 { sessions[slot].lostHint = packet.ack }
    var word = 0
    while word < packet.sackWords {
      var bits = packet.sack(word)
      while bits != 0 {
        let number = packet.ack &+ 1 &+ UInt32(truncatingIfNeeded: word &* 64 &+ bits.trailingZeroBitCount)
        bits &= bits &- 1
        if distance(number, sessions[slot].nextNumber) <= 0 {
          count(.sackInvalid)
          break
        }
        newly &+= acknowledge(slot, number, now)
      }
      word &+= 1
    }
    if packet.flags & MachnetPacket.duplicate != 0 { foundSpurious(slot, now) }
    if newly != 0 {
      if packet.flags & MachnetPacket.echo != 0 {
        sample(slot, packet, now)
        if sessions[slot].backoff != 0 { judgeTimeout(slot, now) }
      }
      sessions[slot].progressAt = now
      sessions[slot].timerFrom = now
      sessions[slot].backoff = 0
      sessions[slot].probeSent = false
      sessions[slot].congestion.acknowledged(
        newly, rtt: sessions[slot].latestRTT, waited: sessions[slot].latestWait, minimum: sessions[slot].minimumRTT,
        now: now)
      if hasMore(slot) { makeReady(slot) }
    }
    if packet.sackWords != 0 || sessions[slot].lossAt != 0 { detectLoss(slot, now) }
    if sessions[slot].inFlight != 0 || sessions[slot].lost != 0 { setTimeout(slot, now) }
  }

  /// - Returns: 1 when the packet was not known to have arrived, else 0.
  @inline(never) @_noLocks
  private mutating func acknowledge(_ slot: UInt32, _ number: UInt32, _ now: UInt64) -> Int {
    let at = place(slot, number)
    if slots[at].state == .inFlight {
      sessions[slot].inFlight &-= 1
    } else if slots[at].state == .lost {
      sessions[slot].lost &-= 1
    } else {
      return 0
    }
    // A copy that was sent a moment ago cannot be the one that has arrived (RFC 8985, 6.2, step 2).
    if slots[at].transmissions == 1 || now &- slots[at].sentAt >= sessions[slot].minimumRTT {
      sessions[slot].rackSentAt = max(sessions[slot].rackSentAt, slots[at].sentAt)
    }
    arrived(slot, at)
    return 1
  }

  /// Gives back what is kept for a packet that has arrived.
  @inline(__always) @_noLocks
  private mutating func arrived(_ slot: UInt32, _ at: Int) {
    slots[at].state = .acknowledged
    give(buffer: slots[at].buffer)
    slots[at].buffer = none
    sessions[slot].pendingMessages &-= UInt32(slots[at].messages)
  }

  @inline(__always) @_noLocks
  func sample(_ slot: UInt32, _ packet: MachnetPacket, _ now: UInt64) {
    let ticks = timestamp(now) &- packet.echoed
    // Beyond a minute it is no round trip of ours.
    if ticks > 1 << 30 { return }
    let rtt = max(64, UInt64(ticks) << 6)
    sessions[slot].latestRTT = rtt
    // When it began, or before: the time that the peer kept it is not in it.
    let start = now > rtt ? now &- rtt : 0
    let away = start < absentUntil ? absentUntil &- max(start, absentFrom) : 0
    sessions[slot].latestWait = away &+ UInt64(packet.waited) << 10
    if sessions[slot].smoothedRTT == 0 {
      sessions[slot].smoothedRTT = rtt
      sessions[slot].varianceRTT = rtt / 2
    } else {
      let smoothed = sessions[slot].smoothedRTT
      let error = rtt > smoothed ? rtt &- smoothed : smoothed &- rtt
      sessions[slot].varianceRTT = (sessions[slot].varianceRTT &* 3 &+ error) / 4
      sessions[slot].smoothedRTT = (smoothed &* 7 &+ rtt) / 8
    }
    if now >= sessions[slot].minimumUntil {
      // Paths change: the least of the last period and of this one.
      sessions[slot].minimumRTT = min(sessions[slot].nextMinimumRTT, rtt)
      sessions[slot].nextMinimumRTT = rtt
      sessions[slot].minimumUntil = now &+ 10_000_000_000
    } else {
      sessions[slot].minimumRTT = min(sessions[slot].minimumRTT, rtt)
      sessions[slot].nextMinimumRTT = min(sessions[slot].nextMinimumRTT, rtt)
    }
  }

  /// What comes after timeouts: was it sent before them? Then nothing was lost, and the peer did not answer because it did
  /// not run, or the way was slow for a moment (the Eifel algorithm, RFC 3522, and the response of RFC 4015).
  @inline(never) @_noLocks
  private mutating func judgeTimeout(_ slot: UInt32, _ now: UInt64) {
    if sessions[slot].timedOutAt &+ sessions[slot].latestRTT <= now { return }
    count(.spuriousTimeouts)
    sessions[slot].congestion.undoTimeout()
    // What was sent once is on its way still.
    var number = sessions[slot].base
    while number != sessions[slot].nextNumber {
      let at = place(slot, number)
      if slots[at].state == .lost && slots[at].transmissions == 1 {
        slots[at].state = .inFlight
        sessions[slot].lost &-= 1
        sessions[slot].inFlight &+= 1
      }
      number &+= 1
    }
  }

  /// The peer has room again: what it has refused meanwhile is sent once more.
  @inline(never) @_noLocks
  private mutating func reopened(_ slot: UInt32, _ now: UInt64) {
    sessions[slot].progressAt = now
    sessions[slot].timerFrom = now
    sessions[slot].backoff = 0
    var number = sessions[slot].base
    while number != sessions[slot].nextNumber {
      let at = place(slot, number)
      if slots[at].state == .inFlight && slots[at].sentAt &+ sessions[slot].smoothedRTT <= now { markLost(slot, number) }
      number &+= 1
    }
    makeReady(slot)
  }

  static var reorderEighthsLeast: UInt32 { @_noLocks get { 8 } }

  /// How long a packet may be overtaken before it is taken to be lost: at first a round trip, since the window has room
  /// for several; twice as long each time that this was wrong.
  @inline(__always) @_noLocks
  private func reorderWindow(_ slot: UInt32) -> UInt64 {
    max(20_000, max(sessions[slot].smoothedRTT, sessions[slot].latestRTT) &* UInt64(sessions[slot].reorderEighths) / 8)
  }

  @_noLocks
  private func foundSpurious(_ slot: UInt32, _ now: UInt64) {
    count(.spuriousRetransmissions)
    sessions[slot].reorderEighths = min(sessions[slot].reorderEighths &* 2, 64)
    sessions[slot].reorderUntil = now &+ 1_000_000_000
  }

  /// RACK: what was sent so long before something that has arrived is lost. Retransmissions, too.
  @_noLocks
  mutating func detectLoss(_ slot: UInt32, _ now: UInt64) {
    if now > sessions[slot].reorderUntil { sessions[slot].reorderEighths = Transport.reorderEighthsLeast }
    let window = reorderWindow(slot)
    let rack = sessions[slot].rackSentAt
    // Counted from when what overtook it arrived, about now.
    var next: UInt64 = 0
    var losses = 0
    var number = sessions[slot].base
    while number != sessions[slot].nextNumber {
      let at = place(slot, number)
      if slots[at].state == .inFlight && slots[at].sentAt < rack {
        let due = slots[at].sentAt &+ sessions[slot].latestRTT &+ window
        if now >= due {
          markLost(slot, number)
          losses &+= 1
        } else if next == 0 || due < next {
          next = due
        }
      }
      number &+= 1
    }
    sessions[slot].lossAt = next
    if next != 0 { wheel.set(slot, next) }
    if losses != 0 {
      // What a closed window has refused was not lost on its way.
      if sessions[slot].peerWindow != 0 { sessions[slot].congestion.lost(losses) }
      makeReady(slot)
    }
  }

  @inline(__always) @_noLocks
  private func markLost(_ slot: UInt32, _ number: UInt32) {
    slots[place(slot, number)].state = .lost
    sessions[slot].inFlight &-= 1
    sessions[slot].lost &+= 1
    if distance(sessions[slot].lostHint, number) < 0 { sessions[slot].lostHint = number }
  }

  /// RFC 6298, with a floor that fits data centres and twice as long after each timeout.
  @inline(__always) @_noLocks
  private func timeout(_ slot: UInt32) -> UInt64 {
    let rtt = sessions[slot].smoothedRTT
    if rtt == 0 { return 10_000_000 << UInt64(sessions[slot].backoff) }
    let base = max(options.minimumTimeout, rtt &+ 4 &* sessions[slot].varianceRTT &+ options.ackDelay)
    return min(base << UInt64(sessions[slot].backoff), options.maximumTimeout)
  }

  /// When a probe goes out for a tail that is not acknowledged (RFC 8985, 7.2).
  @inline(__always) @_noLocks
  private func probeTimeout(_ slot: UInt32) -> UInt64 {
    2 &* sessions[slot].smoothedRTT &+ options.ackDelay &+ TransportOptions.probeSlack
  }

  /// Once after each progress, and not where a timeout would come first anyhow.
  @inline(__always) @_noLocks
  private func mayProbe(_ slot: UInt32) -> Bool {
    !sessions[slot].probeSent && sessions[slot].backoff == 0 && sessions[slot].smoothedRTT != 0
      && sessions[slot].inFlight != 0
  }

  @inline(__always) @_noLocks
  private func timeoutAt(_ slot: UInt32) -> UInt64 {
    let wait = timeout(slot)
    return sessions[slot].timerFrom &+ (mayProbe(slot) ? min(wait, probeTimeout(slot)) : wait)
  }

  /// Sees to the timeout of a session that has packets on their way. It is not worked out where the timer goes off
  /// before any timeout that counts from now could.
  @inline(__always) @_noLocks
  mutating func setTimeout(_ slot: UInt32, _ now: UInt64) {
    if !wheel.isSet(slot, by: now &+ options.leastWait) { wheel.set(slot, timeoutAt(slot)) }
  }

  /// Whatever of a session's timers is due.
  @_noLocks
  mutating func tick(_ slot: UInt32, _ now: UInt64) {
    if sessions[slot].state != .open {
      tickOpening(slot, now)
      return
    }
    var next = UInt64.max
    if sessions[slot].ackAt != 0 {
      if now >= sessions[slot].ackAt {
        sessions[slot].ackAt = 0
        sessions[slot].ackNow = true
        makeReady(slot)
      } else {
        next = sessions[slot].ackAt
      }
    }
    if sessions[slot].lossAt != 0 {
      if now >= sessions[slot].lossAt { detectLoss(slot, now) }
      if sessions[slot].lossAt != 0 { next = min(next, sessions[slot].lossAt) }
    }
    if sessions[slot].paceAt != 0 {
      if now >= sessions[slot].paceAt {
        sessions[slot].paceAt = 0
        makeReady(slot)
      } else {
        next = min(next, sessions[slot].paceAt)
      }
    }
    if sessions[slot].inFlight != 0 || sessions[slot].lost != 0 {
      if sessions[slot].abandonedAt != 0 { _ = tellAbandoned(slot, now) }
      // A peer that answers, and has no room, is alive.
      let aliveAt = sessions[slot].peerWindow == 0 ? sessions[slot].heardAt : sessions[slot].progressAt
      if now &- aliveAt >= options.deadAfter {
        count(.sessionsTimedOut)
        end(slot, .timedOut)
        return
      }
      if now >= timeoutAt(slot) { timedOut(slot, now) }
      next = min(next, timeoutAt(slot))
    } else if now &- sessions[slot].heardAt >= options.keepaliveAfter {
      if sessions[slot].isClient && now &- sessions[slot].messageAt >= options.idleAfter {
        close(slot)
        return
      }
      // A packet without chunks, to be acknowledged: then the timeouts above find out whether anybody is there.
      sessions[slot].pingNext = true
      sessions[slot].heardAt = now
      makeReady(slot)
      next = min(next, now &+ options.keepaliveAfter)
    } else {
      next = min(next, sessions[slot].heardAt &+ options.keepaliveAfter)
    }
    wheel.set(slot, next)
  }

  @_noLocks
  private mutating func timedOut(_ slot: UInt32, _ now: UInt64) {
    let wait = timeout(slot)
    let isProbe = mayProbe(slot) && probeTimeout(slot) < wait
    sessions[slot].timerFrom = now
    if sessions[slot].peerWindow == 0 {
      // Is it closed still (RFC 9293, 3.8.6.1)?
      sessions[slot].backoff = min(sessions[slot].backoff &+ 1, 5)
      sessions[slot].wantsProbe = true
      count(.probes)
      makeReady(slot)
      return
    }
    if isProbe {
      sessions[slot].probeSent = true
      sessions[slot].wantsProbe = true
      count(.probes)
      makeReady(slot)
      return
    }
    count(.timeouts)
    var number = sessions[slot].base
    while number != sessions[slot].nextNumber {
      if slots[place(slot, number)].state == .inFlight { markLost(slot, number) }
      number &+= 1
    }
    if sessions[slot].backoff == 0 { sessions[slot].timedOutAt = now }
    sessions[slot].congestion.timedOut(now, isFirst: sessions[slot].backoff == 0)
    sessions[slot].backoff = min(sessions[slot].backoff &+ 1, 8)
    makeReady(slot)
  }
}
