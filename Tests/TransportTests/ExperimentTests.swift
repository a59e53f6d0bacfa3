import Foundation
import MachnetSimulation
import Testing

/// What the transport has to reach in simulated networks. `machnet-simulate` prints the same with more runs.
@Suite struct Experiments {
  @Test(
    "a session takes no more packets than two independent searches need, at 95%",
    arguments: [(2, 11), (4, 26), (8, 56), (16, 115)])
  func setUp(engines: Int, limit: Int) {
    let it = TransportExperiments.setUp(engines: engines, count: 10_000, seed: runSeed)
    #expect(it.percentile95 <= limit, "seed \(runSeed): \(it)")
    // What is asked for over memif, whose round trips are shorter.
    #expect(it.medianTime < milliseconds, "seed \(runSeed): \(it)")
  }

  @Test(
    "eight megabytes over 10 Gbit/s and 50 us, with loss",
    arguments: [(0, 0.95), (0.001, 0.90), (0.01, 0.75), (0.05, 0.50)])
  func goodput(loss: Double, least: Double) {
    let all = (0..<11 as Range<UInt64>).map {
      TransportExperiments.transfer(mtu: 9000, faults: Faults(loss: loss), seed: runSeed &+ $0)
    }.sorted { $0.share < $1.share }
    let it = all[5]
    #expect(it.share >= least && it.timeouts == 0, "seed \(runSeed): \(it)")
  }

  @Test func `one packet in a hundred is overtaken, and hardly any is sent twice for it`() {
    for mtu in [1500, 9000] {
      var sum = (packets: UInt64(0), again: UInt64(0))
      for seed in 0..<11 as Range<UInt64> {
        let it = TransportExperiments.transfer(mtu: mtu, faults: Faults(reordering: 0.01), seed: runSeed &+ seed)
        sum = (sum.packets + it.packets, sum.again + it.retransmissions)
      }
      #expect(sum.again * 1000 <= sum.packets, "seed \(runSeed), MTU \(mtu): \(sum)")
    }
  }

  @Test("sixteen senders share a link fairly, and the queue before it stays short", arguments: [1500, 9000])
  func incast(mtu: Int) {
    let it = TransportExperiments.incast(senders: 16, mtu: mtu, seed: runSeed)
    #expect(it.percentile99Delay < 200_000 && it.fairness >= 0.95 && it.share > 0.9, "seed \(runSeed): \(it)")
  }

  /// `SEEDS=` runs more of them, `SEED=` replays one; `machnet-simulate swarm` is faster at both.
  @Test func `a thousand seeds of faults: every message once, whole, or reported lost`() {
    let count = ProcessInfo.processInfo.environment["SEEDS"].flatMap(UInt64.init) ?? 1000
    for seed in runSeed..<runSeed &+ count {
      let run = TransportExperiments.swarm(seed: seed)
      #expect(run.faults.isEmpty, "SEED=\(seed): \(run.faults) \(run.description)")
    }
  }

  @Test func `the watch over messages sees a damaged one`() {
    var seen = 0
    for seed in runSeed..<runSeed &+ 50 {
      let run = TransportExperiments.swarm(seed: seed, canary: true)
      if run.faults.contains(where: { $0.contains("damaged") || $0.contains("nobody sent") }) { seen += 1 }
    }
    // Some of them chose a message that was lost with its session.
    #expect(seen >= 40, "seed \(runSeed): \(seen) of 50")
  }
}
