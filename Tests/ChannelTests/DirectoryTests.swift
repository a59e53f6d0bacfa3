import CMachnetABI
import MachnetChannel
import Testing

/// A directory in ordinary memory.
final class DirectoryMemory {
  let base = UnsafeMutableRawPointer.allocate(byteCount: MN_DIRECTORY_SIZE, alignment: 4096)
  init() {
    base.initializeMemory(as: UInt8.self, repeating: 0, count: MN_DIRECTORY_SIZE)
    directory.header.pointee.magic = MN_MAGIC
    directory.header.pointee.version = MN_ABI_VERSION
    directory.header.pointee.size = UInt64(MN_DIRECTORY_SIZE)
  }
  deinit { base.deallocate() }
  var directory: Directory { unsafe Directory(unsafe: base) }
}

func ipv4(_ a: UInt32, _ b: UInt32, _ c: UInt32, _ d: UInt32) -> UInt32 { a << 24 | b << 16 | c << 8 | d }

@Suite struct LocalEndpointTests {
  @Test func wildcardAndExactBindingsAreFoundOthersAreNot() {
    let memory = DirectoryMemory()
    let directory = memory.directory
    #expect(directory.insertLocal(mn_local_key(0, 0, 53), used: 0))
    #expect(directory.insertLocal(mn_local_key(0, ipv4(127, 0, 0, 1), 5000), used: 1))
    #expect(directory.hasLocalEndpoint(netns: 0, address: ipv4(127, 0, 0, 9), port: 53))
    #expect(directory.hasLocalEndpoint(netns: 0, address: ipv4(127, 0, 0, 1), port: 5000))
    #expect(!directory.hasLocalEndpoint(netns: 0, address: ipv4(127, 0, 0, 2), port: 5000))
    #expect(!directory.hasLocalEndpoint(netns: 1, address: ipv4(127, 0, 0, 1), port: 53))
  }

  /// Against a set as the oracle, with removals, so that tombstones and wrap-around are met.
  @Test func theTableAgreesWithASet() {
    let seed = UInt64.random(in: 0 ... .max)
    print("SEED=\(seed)")
    var random = SplitMix(state: seed)
    let memory = DirectoryMemory()
    let directory = memory.directory
    var oracle: Set<UInt64> = []
    for _ in 0..<60_000 {
      let address = UInt32(truncatingIfNeeded: random.next() & 0xff) | 0x7f00_0000
      let port = UInt16(truncatingIfNeeded: 1 + random.next() % 200)
      let key = mn_local_key(0, address, port)
      if random.next() % 3 != 0 {
        #expect(directory.insertLocal(key, used: oracle.count))
        oracle.insert(key)
      } else {
        directory.removeLocal(key)
        oracle.remove(key)
      }
      #expect(directory.hasLocalEndpoint(netns: 0, address: address, port: port) == oracle.contains(key))
    }
  }

  @Test func aFullTableRefuses() {
    let memory = DirectoryMemory()
    #expect(!memory.directory.insertLocal(mn_local_key(0, 1, 1), used: Int(MN_LOCAL_SLOTS) * 3 / 4))
  }
}

@Suite struct RuleSetTests {
  private func rule(
    program: String = "", local: (UInt32, UInt32) = (0, 0), localPorts: ClosedRange<UInt16> = 0...65535,
    remote: (UInt32, UInt32) = (0, 0), remotePorts: ClosedRange<UInt16> = 0...65535, path: Int = Int(MN_PATH_MACHNET)
  ) -> mn_rule {
    var rule = mn_rule()
    rule.local_network = local.0
    rule.local_mask = local.1
    rule.remote_network = remote.0
    rule.remote_mask = remote.1
    rule.local_port_low = localPorts.lowerBound
    rule.local_port_high = localPorts.upperBound
    rule.remote_port_low = remotePorts.lowerBound
    rule.remote_port_high = remotePorts.upperBound
    rule.path = UInt8(path)
    withUnsafeMutableBytes(of: &rule.program) { $0.copyBytes(from: program.utf8) }
    return rule
  }

  private func decide(_ rules: [mn_rule], program: String, local: (UInt32, UInt16), remote: (UInt32, UInt16)) -> Int? {
    var rules = rules
    return rules.withUnsafeMutableBufferPointer { buffer in
      let set = unsafe RuleSet(unsafe: buffer.baseAddress!, count: buffer.count)
      let padded = program + String(repeating: "\0", count: 64)
      let mask = padded.withCString { unsafe set.mask(programs: $0, $0) }
      return set.first(
        program: mask, localAddress: local.0, localPort: local.1, remoteAddress: remote.0, remotePort: remote.1)
    }
  }

  @Test func theFirstMatchWins() {
    let rules = [
      rule(remote: (ipv4(10, 0, 1, 9), .max), path: Int(MN_PATH_KERNEL)),
      rule(remote: (ipv4(10, 0, 1, 0), 0xffff_ff00), remotePorts: 5000...5999),
      rule(program: "memcached", localPorts: 11211...11211),
    ]
    let local = (ipv4(10, 0, 1, 4), UInt16(40000))
    #expect(decide(rules, program: "x", local: local, remote: (ipv4(10, 0, 1, 9), 5001)) == 0)
    #expect(decide(rules, program: "x", local: local, remote: (ipv4(10, 0, 1, 8), 5001)) == 1)
    #expect(decide(rules, program: "x", local: local, remote: (ipv4(10, 0, 1, 8), 4999)) == nil)
    #expect(decide(rules, program: "x", local: local, remote: (ipv4(10, 0, 1, 8), 6000)) == nil)
    #expect(decide(rules, program: "memcached", local: (0, 11211), remote: (ipv4(192, 0, 2, 1), 9)) == 2)
    #expect(decide(rules, program: "memcache", local: (0, 11211), remote: (ipv4(192, 0, 2, 1), 9)) == nil)
    #expect(decide(rules, program: "memcachedx", local: (0, 11211), remote: (ipv4(192, 0, 2, 1), 9)) == nil)
  }

  @Test func aTrailingStarFitsAnyEnding() {
    let rules = [rule(program: "python3*")]
    #expect(decide(rules, program: "python3", local: (0, 1), remote: (1, 1)) == 0)
    #expect(decide(rules, program: "python3.11", local: (0, 1), remote: (1, 1)) == 0)
    #expect(decide(rules, program: "python2", local: (0, 1), remote: (1, 1)) == nil)
  }

  /// Every rule index, so that each bit of the mask is the right one.
  @Test func everyRuleOfAFullTableCanMatch() {
    for index in [0, 1, 63, 64, 65, 511, 512, Int(MN_RULES_MAX) - 1] {
      var rules = Array(repeating: rule(program: "other"), count: Int(MN_RULES_MAX))
      rules[index] = rule(program: "me")
      #expect(decide(rules, program: "me", local: (1, 1), remote: (1, 1)) == index)
    }
  }
}
