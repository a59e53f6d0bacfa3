import CMachnetABI
import Foundation
import Testing

@testable import MachnetControl

private let machine = Machine(processors: [0, 1], hasGroup: { _ in true })

private func judge(_ flows: String, _ question: FlowQuestion) throws -> FlowExplanation {
  let config = try Config(
    yaml: """
      interfaces:
        - { name: net0, address: 10.0.1.4/24, gateway: 10.0.1.1, device: { vdev: net_null0 } }
        - { name: net1, address: 10.0.2.4/24, device: { vdev: net_null1 } }
      flows:
      \(flows)
      """, machine: machine)
  let memory = try DirectoryMemory(config: config)
  return withExtendedLifetime(memory) { FlowJudge(memory).explain(question) }
}

private func address(_ text: String) -> UInt32 { IPv4Address(text)!.value }

@Suite struct ExplanationTests {
  static let flows = """
    - { match: { program: memcached, local: "*:11211" }, path: machnet }
    - { match: { remote: "10.0.1.9" }, path: kernel }
    - { match: { remote: "10.0.0.0/8:5000-5999" }, path: machnet }
    """

  @Test func theFirstRuleThatMatchesDecides() throws {
    let question = FlowQuestion(remote: (address("10.0.1.7"), 5000))
    let found = try judge(Self.flows, question)
    #expect(found.path == "machnet" && found.ruleLine == 7 && found.transport == "udp" && found.rulesGeneration == nil)
    #expect(found.local == "10.0.1.4:*", "the interface's address is the source")
    #expect(found.reasons == ["the rule in line 7 matches first, and says machnet", "by the interface with 10.0.1.4"])
    #expect(found.rule == "{ match: { remote: \"10.0.0.0/8:5000-5999\" }, path: machnet }")
    #expect(found.misses.map(\.line) == [5])
    #expect(found.misses[0].reason == "it is for the program memcached, and no program was named")
    let kernel = try judge(Self.flows, FlowQuestion(remote: (address("10.0.1.9"), 5000)))
    #expect(kernel.path == "kernel" && kernel.ruleLine == 6)
  }

  @Test func whatKeepsEachRuleFromMatching() throws {
    let found = try judge(
      Self.flows, FlowQuestion(programs: ["memcached"], localPort: 11212, remote: (address("10.0.1.7"), 80)))
    #expect(found.path == "kernel" && found.ruleLine == nil && found.reasons[0].hasPrefix("no rule matches"))
    #expect(
      found.misses.map(\.reason) == [
        "its local side is *:11211, the flow's 10.0.1.4:11212",
        "its remote side is 10.0.0.0/8:5000-5999, the flow's 10.0.1.7:80",
      ])
    #expect(
      try judge(Self.flows, FlowQuestion(programs: ["nsd"], localPort: 11211, remote: (address("10.0.1.7"), 80))).misses[0]
        .reason == "it is for the program memcached, and the program is nsd")
  }

  @Test func howItLeavesTheHost() throws {
    let far = try judge("- { match: {}, path: machnet }", FlowQuestion(remote: (address("203.0.113.1"), 9)))
    #expect(far.path == "machnet" && far.reasons.last == "by the interface with 10.0.1.4 and its gateway 10.0.1.1")
    let near = try judge("- { match: {}, path: machnet }", FlowQuestion(remote: (address("10.0.2.1"), 9)))
    #expect(near.reasons.last == "by the interface with 10.0.2.4" && near.local == "10.0.2.4:*")
    let own = try judge("- { match: {}, path: machnet }", FlowQuestion(remote: (address("127.0.0.5"), 9)))
    #expect(own.path == "machnet" && own.reasons.last!.contains("is on this host"))
    let config = try Config(yaml: "flows: [{ match: {}, path: machnet }]", machine: machine)
    let memory = try DirectoryMemory(config: config)
    let lost = FlowJudge(memory).explain(FlowQuestion(remote: (address("203.0.113.1"), 9)))
    #expect(lost.path == "kernel" && lost.ruleLine == 1 && lost.reasons.last!.contains("no interface of the daemon leads there"))
    let multicast = try judge("- { match: {}, path: machnet }", FlowQuestion(remote: (address("239.1.1.1"), 9)))
    #expect(multicast.path == "kernel" && multicast.reasons == ["multicast and broadcast stay on the kernel"])
  }

  @Test func aSocketThatIsBoundOnly() throws {
    let found = try judge(Self.flows, FlowQuestion(programs: ["memcached", "mc"], localPort: 11211))
    #expect(found.path == "machnet" && found.ruleLine == 5 && found.remote == nil)
    #expect(try judge(Self.flows, FlowQuestion(programs: ["mc", "memcached"], localPort: 11211)).ruleLine == 5)
    let none = try judge("- { match: { local: \"*:53\" }, path: machnet }", FlowQuestion(localPort: 54))
    #expect(none.path == "kernel" && none.reasons == ["no rule for Machnet can match a flow of this socket"])
  }

  @Test func aDaemonsRefusalsAreRemembered() throws {
    try withDaemon { daemon in
      let client = try daemon.client()
      var hello = client.request(MN_REQUEST_HELLO)
      unsafe withUnsafeMutableBytes(of: &hello.program) { unsafe $0.copyBytes(from: "asker".utf8) }
      _ = try client.call(hello)
      let channel = try client.call(client.request(MN_REQUEST_CHANNEL))
      // Not bound, then one more than are remembered of different sockets.
      var sockets: [Int32] = []
      for _ in 0...RefusalRecord.perConnection { sockets.append(socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)) }
      defer { for socket in sockets { close(socket) } }
      for socket in sockets + [sockets.last!] {
        var open = client.request(MN_REQUEST_OPEN)
        open.channel = channel.header.channel
        #expect(try client.call(open, descriptors: [socket]).header.status == EINVAL)
      }
      let process = try #require(try daemon.status().processes.first { $0.program == "asker" })
      #expect(process.refusals.count == RefusalRecord.perConnection)
      var status = stat()
      unsafe fstat(sockets.last!, &status)
      let last = try #require(process.refusals.last)
      #expect(last.inode == UInt64(status.st_ino) && last.count == 2 && last.error == Int(EINVAL) && last.request == "open")
      #expect(last.reason.contains("has not bound it"))
    }
  }
}
