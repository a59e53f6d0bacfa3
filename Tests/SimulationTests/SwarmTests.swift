import EngineBench
import Glibc
import MachnetSimulation
import Testing

/// Faults of every kind, in every combination. `SEED=` replays a run, `SEEDS=` says how many; `Scripts/swarm` runs many.
@Suite struct SwarmTests {
  private static let count = unsafe getenv("SEEDS").flatMap { unsafe Int(String(cString: $0)) } ?? 12

  @Test func `daemons under the faults of many seeds`() {
    for number in 0..<SwarmTests.count {
      let seed = runSeed &+ UInt64(number)
      let outcome = DaemonSwarm.run(seed: seed)
      #expect(outcome.faults == [], "SEED=\(seed) SEEDS=1 replays it: \(outcome.description)")
    }
  }

  @Test func `a run is the same every time`() {
    let first = DaemonSwarm.run(seed: runSeed)
    let second = DaemonSwarm.run(seed: runSeed)
    #expect(first.traceHash == second.traceHash && first.delivered == second.delivered, "SEED=\(runSeed)")
  }

  @Test(arguments: DaemonSwarm.Canary.allCases)
  func `a fault behind the engines' backs is seen`(canary: DaemonSwarm.Canary) {
    for number in 0..<3 {
      let outcome = DaemonSwarm.run(seed: runSeed &+ UInt64(number), canary: canary)
      #expect(!outcome.faults.isEmpty, "SEED=\(runSeed &+ UInt64(number)), \(canary): \(outcome.description)")
    }
  }
}
