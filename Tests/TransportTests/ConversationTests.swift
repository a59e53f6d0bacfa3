import Glibc
import MachnetSimulation
import MachnetTransport
import MachnetWire
import Testing

/// The seed of this run. The same each time, so that a change is judged by itself; `SEED=` takes another one, and
/// `machnet-simulate swarm` draws new ones.
let runSeed: UInt64 = {
  if let text = unsafe getenv("SEED"), let seed = unsafe UInt64(String(cString: text)) { return seed }
  return 20_261_125
}()

func lab(hosts: Int = 2, engines: Int = 1, mtu: Int = 1500, seed: UInt64 = runSeed, link: LinkOptions = LinkOptions())
  -> TransportLab
{
  var options = TransportLab.Options(seed: seed)
  options.hosts = hosts
  options.engines = engines
  options.mtu = mtu
  options.link = link
  return TransportLab(options)
}

let milliseconds: UInt64 = 1_000_000
let seconds: UInt64 = 1_000_000_000

@Suite struct Conversation {
  @Test func `messages of every interesting length arrive whole, both ways`() {
    for mtu in [576, 1500, 9000] {
      let lab = lab(mtu: mtu)
      let piece = mtu - 28 - 52
      let sizes = [8, 9, 63, 64, 65, piece - 1, piece, piece + 1, 2 * piece, 2 * piece + 1, 65_507, 65_536, 65_537, 1 << 20]
      for size in sizes {
        lab.post(from: 0, to: 1, size: size)
        lab.post(from: 1, to: 0, size: size)
      }
      lab.run(until: seconds) { lab.outstanding == 0 }
      #expect(lab.faults.isEmpty, "\(lab.faults)")
      #expect(lab.delivered == 2 * sizes.count)
      #expect(lab.count(.retransmissions) == 0 && lab.count(.malformed) == 0 && lab.count(.timeouts) == 0)
      #expect(lab.network.isConserved)
    }
  }

  @Test func `eight megabytes cross`() {
    let lab = lab()
    lab.post(from: 0, to: 1, size: 8 << 20)
    lab.run(until: seconds) { lab.outstanding == 0 }
    #expect(lab.faults.isEmpty && lab.delivered == 1)
  }

  @Test func `small messages share packets`() {
    let lab = lab()
    for _ in 0..<1000 { lab.post(from: 0, to: 1, size: 64) }
    lab.run(until: seconds) { lab.outstanding == 0 }
    #expect(lab.faults.isEmpty && lab.delivered == 1000)
    #expect(lab.count(.packetsSent) < 150)
  }

  @Test func `loss, duplication, reordering and corruption: every message once and whole`() {
    for seed in 0..<8 as Range<UInt64> {
      let lab = lab(engines: 2, seed: runSeed &+ seed)
      lab.network.faults = Faults(loss: 0.05, duplication: 0.02, reordering: 0.05, corruption: 0.01)
      for index in 0..<300 {
        lab.post(from: index & 1, queue: index >> 1 & 1, to: 1 - index & 1, size: 8 + index * 37 % 5000)
      }
      lab.run(until: 20 * seconds) { lab.outstanding == 0 }
      #expect(lab.faults.isEmpty, "seed \(runSeed &+ seed): \(lab.faults)")
      #expect(lab.outstanding == 0 && lab.excused == 0, "seed \(runSeed &+ seed)")
    }
  }

  @Test func `a session that dies counts the messages of which a piece is missing, whichever it is`() {
    // In three pieces; a small one follows in the last packet.
    for missing in [[], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]] as [[Int]] {
      let it = Exchange(seed: runSeed)
      it.open()
      #expect(it.send(3000) && it.send(10))
      var packets: [([UInt8], PortPair)] = []
      while let packet = it.next(fromA: true) { packets.append(packet) }
      #expect(packets.count == 3)
      for number in 0..<3 where !missing.contains(number) { it.give(packets[number].0, packets[number].1, toA: false) }
      it.now += 1_000_000
      it.b.expire(now: it.now)
      while let (payload, ports) = it.next(fromA: false) { it.give(payload, ports, toA: true) }
      it.a.closeAll()
      it.hear(ofA: true)
      let lost = (missing.isEmpty ? 0 : 1) + (missing.contains(2) ? 1 : 0)
      #expect(it.closed == 1 && it.lost == lost && it.a.value(.messagesLost) == UInt64(lost), "without \(missing)")
      #expect(it.received.count == 2 - lost)
    }
  }

  /// A session that has carried messages for a while, and its congestion window.
  private func experienced() -> (Exchange, window: Double) {
    let it = Exchange(seed: runSeed)
    it.open()
    for _ in 0..<50 {
      #expect(it.send(1000))
      it.settle()
    }
    return (it, it.a.snapshot(0)!.congestionWindow)
  }

  /// The peer's engine is away for 20 ms, and says so; then what waited for it arrives, originals before copies.
  @Test func `timeouts while the peer is away leave the window as it was`() {
    let (it, before) = experienced()
    let began = it.now
    var waiting: [([UInt8], PortPair)] = []
    for _ in 0..<4 { #expect(it.send(1000)) }
    while it.now < began + 20 * milliseconds {
      while let packet = it.next(fromA: true) { waiting.append(packet) }
      it.now += 10_000
      it.a.expire(now: it.now)
    }
    #expect(it.a.value(.timeouts) >= 3 && it.a.snapshot(0)!.congestionWindow < before / 4)
    it.b.absent(from: began, until: it.now)
    let isCatchingUp = it.b.isCatchingUp
    #expect(isCatchingUp)
    for (payload, ports) in waiting { it.give(payload, ports, toA: false) }
    it.b.caughtUp()
    it.settle()
    #expect(it.a.value(.spuriousTimeouts) == 1 && it.received.suffix(4) == [1000, 1000, 1000, 1000])
    #expect(it.a.snapshot(0)!.congestionWindow >= before, "\(before)")
    // What the next packets tell is believed again.
    #expect(it.send(1000))
    it.settle()
    #expect(it.a.snapshot(0)!.minimumRTT < 100_000)
  }

  @Test func `a sample in which this side was away says nothing, and one that goes far beyond does`() {
    for (away, isSlower) in [(10 * milliseconds, false), (5 * milliseconds, true)] {
      let (it, before) = experienced()
      // Three rounds of it: the least delay of two counts.
      for _ in 0..<3 {
        #expect(it.send(1000))
        var answers: [([UInt8], PortPair)] = []
        while let (payload, ports) = it.next(fromA: true) { it.give(payload, ports, toA: false) }
        it.now += 200_000
        it.b.expire(now: it.now)
        while let answer = it.next(fromA: false) { answers.append(answer) }
        #expect(!answers.isEmpty)
        it.now += 10 * milliseconds
        it.a.absent(from: it.now - away, until: it.now)
        for (payload, ports) in answers { it.give(payload, ports, toA: true) }
        it.a.caughtUp()
      }
      #expect((it.a.snapshot(0)!.congestionWindow < before) == isSlower, "\(away)")
    }
  }

  /// A program ends while its datagram is half sent.
  @Test func `messages that their senders give up leave nothing at the receiver, whatever order it hears that in`() {
    for order in 0..<3 {
      let it = Exchange(seed: runSeed)
      it.open()
      for _ in 0..<20 {
        // 43 packets, of which 32 may wait to be sent.
        guard let progress = it.send(60_000, nil) else {
          Issue.record("it did not wait")
          return
        }
        #expect(it.send(50_000, nil) == nil && it.send(3_000) == false, "another one waits for the first")
        if order == 0 { it.settle() }
        it.a.abandon(progress, now: it.now)
        var packets: [([UInt8], PortPair)] = []
        while let packet = it.next(fromA: true) { packets.append(packet) }
        if order == 2 { packets.reverse() }
        for (payload, ports) in packets { it.give(payload, ports, toA: false) }
        it.settle()
      }
      #expect(it.received.isEmpty, "order \(order): \(it.received)")
      #expect(it.b.value(.assemblyFull) == 0 && it.b.value(.chunkMalformed) == 0)
      var progress = it.send(60_000, nil)
      while progress != nil {
        it.settle()
        progress = it.send(60_000, progress)
      }
      it.settle()
      #expect(it.received == [60_000], "order \(order): \(it.received)")
    }
  }
}
