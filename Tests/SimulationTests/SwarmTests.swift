import EngineBench
import Glibc
import MachnetSimulation
import Testing

/// Faults of every kind, in every combination. The same few seeds each time, so that a change is judged by itself: `SEED=`
/// takes others, from that one on, `SEEDS=` says how many; `Scripts/swarm` draws new ones, and many.
@Suite struct SwarmTests {
  private static let first = unsafe getenv("SEED").flatMap { unsafe UInt64(String(cString: $0)) } ?? 20_261_125
  private static let count = unsafe getenv("SEEDS").flatMap { unsafe Int(String(cString: $0)) } ?? 4

  @Test func `daemons under the faults of many seeds`() {
    print("daemon swarm: seeds \(SwarmTests.first)...\(SwarmTests.first &+ UInt64(max(1, SwarmTests.count) - 1))")
    for number in 0..<SwarmTests.count {
      let seed = SwarmTests.first &+ UInt64(number)
      let outcome = DaemonSwarm.run(seed: seed)
      #expect(outcome.faults == [], "SEED=\(seed) SEEDS=1 replays it: \(outcome.description)")
    }
  }

  @Test func `a run is the same every time`() {
    let first = DaemonSwarm.run(seed: SwarmTests.first)
    let second = DaemonSwarm.run(seed: SwarmTests.first)
    #expect(first.traceHash == second.traceHash && first.delivered == second.delivered, "SEED=\(SwarmTests.first)")
  }

  @Test(arguments: DaemonSwarm.Canary.allCases)
  func `a fault behind the engines' backs is seen`(canary: DaemonSwarm.Canary) {
    for number in 0..<2 {
      let outcome = DaemonSwarm.run(seed: SwarmTests.first &+ UInt64(number), canary: canary)
      #expect(!outcome.faults.isEmpty, "SEED=\(SwarmTests.first &+ UInt64(number)), \(canary): \(outcome.description)")
    }
  }
}
