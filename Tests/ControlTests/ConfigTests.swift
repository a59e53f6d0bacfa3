import CMachnetABI
import Foundation
import MachnetChannel
import MachnetEngine
import Testing

@testable import MachnetControl

/// Four CPUs, the group `machnet`.
let smallMachine = Machine(processors: [0, 1, 2, 3], hasGroup: { $0 == "machnet" })

func mistakes(_ yaml: String) -> [String] {
  do throws(ConfigMistakes) {
    _ = try Config(yaml: yaml, machine: smallMachine)
    return []
  } catch {
    return error.mistakes.map { $0.description(file: "m.yaml") }
  }
}

@Suite struct ConfigTests {
  @Test func theDesignsExample() throws {
    let config = try Config(
      yaml: """
        interfaces:
          - name: net0
            address: 10.0.1.4/24
            gateway: 10.0.1.1            # optional
            device: { pci: "0000:00:06.0" }
            queues: 1
          - { name: net1, address: 10.0.2.4/24, device: { vdev: "net_memif0,role=server,socket=/run/machnet/net0.sock" } }
        engine:
          cpus: [1]
          polling: adaptive
        control: { socket: /run/machnet/machnetd.sock, mode: "0660", group: machnet }
        flows:
          - { match: { program: memcached, local: "*:11211" }, path: machnet, transport: udp }
          - { match: { remote: "10.0.1.0/24:5000-5999" },      path: machnet, on-engine-loss: error }
          - { match: { remote: "10.0.1.9" },                   path: kernel }
        """, machine: smallMachine)
    let net0 = try #require(config.interfaces.first)
    #expect(net0.prefix.description == "10.0.1.4/24")
    #expect(net0.gateway == IPv4Address("10.0.1.1"))
    #expect(net0.device == .pci("0000:00:06.0"))
    #expect(config.interfaces[1].device == .vdev("net_memif0,role=server,socket=/run/machnet/net0.sock"))
    #expect(config.engine == Config.Engine(cpus: [1], polling: .adaptive, idleMicroseconds: 200))
    #expect(config.control == Config.Control(socket: "/run/machnet/machnetd.sock", mode: 0o660, group: "machnet"))
    #expect(config.flows.map(\.path) == [.machnet, .machnet, .kernel])
    #expect(config.flows.map(\.onEngineLoss) == [.kernel, .error, .kernel])
    #expect(config.flows.map(\.line) == [13, 14, 15])
    #expect(config.flows[0].local.description == "*:11211")
    #expect(config.flows[1].remote.description == "10.0.1.0/24:5000-5999")
  }

  /// Scripts/share/reference.yaml, which is also the manual's page.
  private static let reference = URL(filePath: #filePath).deletingLastPathComponent()
    .appending(path: "../../Scripts/share/reference.yaml").standardized

  @Test func theReferenceHasTheDefaults() throws {
    let config = try Config(yaml: String(contentsOf: Self.reference, encoding: .utf8), machine: smallMachine)
    #expect(config.engine == Config.Engine() && config.control == Config.Control() && config.channel == Config.Channel())
    #expect(config.waiting == Config.Waiting() && config.profiles == Config.Profile.builtIn && config.limits == Config.Limits())
    #expect(config.transport == Config.Transport() && config.metrics == Config.Metrics())
    #expect(config.interfaces.count == 1 && config.flows.count == 1)
  }

  @Test("the reference has every key that the reader takes", arguments: [
    "zz: 1", "interfaces: [{ zz: 1 }]", "interfaces: [{ device: { zz: 1 } }]", "engine: { zz: 1 }", "control: { zz: 1 }", "waiting: { zz: 1 }",
    "profiles: { a: { zz: 1 } }", "channel: { zz: 1 }", "limits: { zz: 1 }", "transport: { zz: 1 }", "metrics: { zz: 1 }", "flows: [{ zz: 1 }]",
    "flows: [{ match: { zz: 1 }, path: kernel }]",
  ])
  func theReferenceIsWhole(_ yaml: String) throws {
    let text = try String(contentsOf: Self.reference, encoding: .utf8)
    let complaint = try #require(mistakes(yaml).first { $0.contains("found 'zz'") })
    let match = try #require(complaint.firstMatch(of: #/error: expected (.*) in /#))
    for key in match.1.replacing(" or ", with: ", ").split(separator: ", ") {
      #expect(text.contains(try Regex("(^|[ #{])\(key):").anchorsMatchLineEndings()), "\(key)")
    }
  }

  @Test("devices are named as DPDK names their ports", arguments: [
    ("{ pci: \"00:06.0\" }", Config.Interface.Device.pci("0000:00:06.0")),
    ("{ pci: \"0000:0A:1f.7\" }", .pci("0000:0a:1f.7")),
    ("{ pci: \"00010000:00:00.0\" }", .pci("10000:00:00.0")),
    ("{ pci: \"7870:00:00.0,mac=00:0D:3A:76:3B:D0\" }", .pci("7870:00:00.0,mac=00:0D:3A:76:3B:D0")),
    ("{ vmbus: 7A08391F-f5a0-4ac0-9802-d13fd964f8df }", .vmbus("7a08391f-f5a0-4ac0-9802-d13fd964f8df", virtualFunction: nil)),
    ("{ vmbus: 7a08391f-f5a0-4ac0-9802-d13fd964f8df, vf: \"2:00:02.0\" }", nil),
    ("{ vmbus: 7a08391f-f5a0-4ac0-9802-d13fd964f8df, vf: \"0002:00:02.0\" }",
     .vmbus("7a08391f-f5a0-4ac0-9802-d13fd964f8df", virtualFunction: "0002:00:02.0")),
  ])
  func devices(_ text: String, _ device: Config.Interface.Device?) throws {
    let yaml = "interfaces: [{ name: a, address: 10.0.0.1/24, device: \(text) }]"
    guard let device else { return #expect(mistakes(yaml).count == 1) }
    #expect(try Config(yaml: yaml, machine: smallMachine).interfaces.map(\.device) == [device])
  }

  @Test func everyOptionalSection() throws {
    let config = try Config(
      yaml: """
        engine: { cpus: [2, 0], polling: busy, idle-us: 50, stall-s: 7 }
        channel: { endpoints: 8, tx-ring: 256K, rx-ring: 2M, max-channels-per-process: 3, max-endpoints: 100 }
        waiting: { spin-us: 0, yield: true }
        limits: { connections: 10, connections-per-user: 5 }
        """, machine: smallMachine)
    #expect(config.interfaces.isEmpty && config.flows.isEmpty)
    #expect(config.engine == Config.Engine(cpus: [2, 0], polling: .busy, idleMicroseconds: 50, stallSeconds: 7))
    #expect(
      config.channel
        == Config.Channel(
          endpoints: 8, transmitRing: 262144, receiveRing: 2 << 20, maximumPerProcess: 3, maximumEndpoints: 100))
    #expect(config.waiting == Config.Waiting(spinMicroseconds: 0, yields: true))
    #expect(config.limits == Config.Limits(connections: 10, connectionsPerUser: 5))
  }

  @Test(arguments: ["", "# nothing\n", "flows:\n", "interfaces: []\nengine: ~\n"])
  func nothingButDefaults(yaml: String) throws {
    #expect(try Config(yaml: yaml, machine: smallMachine) == Config())
  }

  @Test func yieldingFollowsTheMachineUnlessStated() throws {
    #expect(Config.Waiting().yields(processors: 4))
    #expect(!Config.Waiting().yields(processors: 5))
    let config = try Config(yaml: "waiting: { yield: false }", machine: smallMachine)
    #expect(!config.waiting.yields(processors: 1))
  }

  /// Each mistake, and all that is said about it.
  static let table: [(yaml: String, says: [String])] = [
    ("flow: []", ["m.yaml:1:1: error: expected interfaces, engine, control, channel, waiting, profiles, limits, transport, metrics or flows in the config, found 'flow'"]),
    ("- a", ["m.yaml:1:1: error: expected the config with interfaces, engine, control, channel, waiting, profiles, limits, transport, metrics or flows, found a list"]),
    ("engine: { cpus: [1\n", ["m.yaml:2:1: error: expected YAML, found a mistake: did not find expected ',' or ']' (while parsing a flow sequence that starts at line 1)"]),
    ("engine: {}\nengine: {}", ["m.yaml:1:1: error: expected every key once, found 'engine' again"]),
    ("engine: {}\n---\nengine: {}", ["m.yaml:2:1: error: expected YAML, found a mistake: but found another document (expected a single document in the stream that starts at line 1)"]),
    ("engine: 5", ["m.yaml:1:9: error: expected the section 'engine' with cpus, polling, idle-us, separate-hosts or stall-s, found '5'"]),
    ("engine: { cpus: 1 }", ["m.yaml:1:17: error: expected a list of CPUs, found '1'"]),
    ("engine: { cpus: [4] }", ["m.yaml:1:18: error: expected a CPU that the daemon may run on (0-3), found 4"]),
    ("engine: { cpus: [1, 1] }", ["m.yaml:1:21: error: expected every CPU once, found 1 again"]),
    ("engine: { cpus: [-1] }", ["m.yaml:1:18: error: expected the number of a CPU, found '-1'"]),
    ("engine: { polling: fast }", ["m.yaml:1:20: error: expected busy, yield or adaptive, found 'fast'"]),
    ("engine: { idle-us: 1000001 }", ["m.yaml:1:20: error: expected a number of microseconds from 0 to 1000000, found '1000001'"]),
    ("control: { socket: here.sock }", ["m.yaml:1:20: error: expected an absolute path of at most 107 bytes, found 'here.sock'"]),
    ("control: { mode: 0888 }", ["m.yaml:1:18: error: expected octal permissions such as \"0660\", found '0888'"]),
    ("control: { mode: \"4660\" }", ["m.yaml:1:18: error: expected octal permissions such as \"0660\", found '4660'"]),
    ("control: { group: nobody-here }", ["m.yaml:1:19: error: expected a group of this machine, found 'nobody-here'"]),
    ("channel: { endpoints: 257 }", ["m.yaml:1:23: error: expected a number of endpoints from 1 to 256, found '257'"]),
    ("channel: { tx-ring: 100K }", ["m.yaml:1:21: error: expected a ring size that is a power of two from 256K to 64M, found '100K'"]),
    ("channel: { rx-ring: 128K }", ["m.yaml:1:21: error: expected a ring size that is a power of two from 256K to 64M, found '128K'"]),
    ("channel: { rx-ring: 99999999999999999999 }", ["m.yaml:1:21: error: expected a ring size that is a power of two from 256K to 64M, found '99999999999999999999'"]),
    ("channel: { max-endpoints: 49153 }", ["m.yaml:1:27: error: expected a number of endpoints from 1 to 49152, found '49153'"]),
    ("waiting: { yield: maybe }", ["m.yaml:1:19: error: expected auto, true or false, found 'maybe'"]),
    ("limits: { connections: 0 }", ["m.yaml:1:24: error: expected a number of connections from 1 to 65536, found '0'"]),
    ("metrics: { listen: 10.0.0.1:9464 }", ["m.yaml:1:20: error: expected a loopback address with a port, such as 127.0.0.1:9464, or an absolute path of at most 107 bytes, found '10.0.0.1:9464'"]),
    ("metrics: { listen: 127.0.0.1 }", ["m.yaml:1:20: error: expected a loopback address with a port, such as 127.0.0.1:9464, or an absolute path of at most 107 bytes, found '127.0.0.1'"]),
    ("interfaces: net0", ["m.yaml:1:13: error: expected a list of interfaces, found 'net0'"]),
    (
      "interfaces: [{}]",
      ["name", "address", "device"].map { "m.yaml:1:14: error: expected '\($0)' in an interface, found none" }
    ),
    ("interfaces: [{ name: a b, address: 10.0.0.1/24, device: { vdev: net_null0 } }]", ["m.yaml:1:22: error: expected a name of 1 to 32 letters, digits, '.', '_' or '-', found 'a b'"]),
    ("interfaces: [{ name: a, address: 10.0.0.1, device: { vdev: net_null0 } }]", ["m.yaml:1:34: error: expected an IPv4 address with its prefix length, such as 10.0.1.4/24, found '10.0.0.1'"]),
    ("interfaces: [{ name: a, address: 10.0.0.0/24, device: { vdev: net_null0 } }]", ["m.yaml:1:34: error: expected an IPv4 address with its prefix length, such as 10.0.1.4/24, found '10.0.0.0/24'"]),
    ("interfaces: [{ name: a, address: 10.0.0.1/24, gateway: 10.0.1.1, device: { vdev: net_null0 } }]", ["m.yaml:1:56: error: expected another address of the subnet 10.0.0.0/24, found 10.0.1.1"]),
    ("interfaces: [{ name: a, address: 10.0.0.1/24, device: { vdev: null0 } }]", ["m.yaml:1:63: error: expected a DPDK virtual device such as \"net_memif0,role=server,socket=/run/machnet/net0.sock\", found 'null0'"]),
    ("interfaces: [{ name: a, address: 10.0.0.1/24, device: { pci: \"6\" } }]", ["m.yaml:1:62: error: expected a PCI address such as \"0000:00:06.0\", found '6'"]),
    ("interfaces: [{ name: a, address: 10.0.0.1/24, device: { usb: x } }]", ["m.yaml:1:55: error: expected 'pci', 'vdev' or 'vmbus' in a device, found none of them", "m.yaml:1:57: error: expected pci, vdev, vmbus or vf in a device, found 'usb'"]),
    ("interfaces: [{ name: a, address: 10.0.0.1/24, device: { pci: \"00:06.0\", vdev: net_null0 } }]", ["m.yaml:1:55: error: expected one of 'pci', 'vdev' and 'vmbus' in a device, found more"]),
    ("interfaces: [{ name: a, address: 10.0.0.1/24, device: { vmbus: eth1 } }]", ["m.yaml:1:64: error: expected the UUID of a VMBus device such as \"7a08391f-f5a0-4ac0-9802-d13fd964f8df\", found 'eth1'"]),
    ("interfaces: [{ name: a, address: 10.0.0.1/24, device: { vdev: net_null0, vf: \"0002:00:02.0\" } }]", ["m.yaml:1:78: error: expected 'vf' beside 'vmbus' only, which it serves"]),
    ("interfaces: [{ name: a, address: 10.0.0.1/24, queues: 17, device: { vdev: net_null0 } }]", ["m.yaml:1:55: error: expected a number of queues from 1 to 16, found '17'"]),
    ("interfaces: [{ name: a, address: 10.0.0.1/24, mtu: 575, device: { vdev: net_null0 } }]", ["m.yaml:1:52: error: expected a number of bytes from 576 to 65535, found '575'"]),
    (
      """
      interfaces:
        - { name: a, address: 10.0.0.1/24, device: { vdev: net_null0 } }
        - { name: a, address: 10.0.0.2/24, device: { vdev: net_null1 } }
      """,
      [
        "m.yaml:3:13: error: expected every interface to have its own name, found 'a' again",
        "m.yaml:3:25: error: expected every interface to have its own subnet, found 10.0.0.2/24, which overlaps 10.0.0.1/24 of 'a'",
      ]
    ),
    (
      """
      engine: { separate-hosts: true }
      interfaces:
        - { name: a, address: 10.0.0.1/24, device: { vdev: net_null0 } }
        - { name: b, address: 10.0.0.2/24, device: { vdev: net_null1 } }
        - { name: c, address: 10.0.0.1/24, device: { vdev: net_null2 } }
      """, ["m.yaml:5:25: error: expected every host to have its own address, found that of 'a' again"]
    ),
    ("flows: [{ path: kernel }]", ["m.yaml:1:9: error: expected 'match' in a flow, found none"]),
    ("flows: [{ match: {} }]", ["m.yaml:1:9: error: expected 'path' in a flow, found none"]),
    ("flows:\n- match:\n  program: x\n  path: kernel", ["m.yaml:2:9: error: expected 'match' with program, local or remote, found ''", "m.yaml:3:3: error: expected match, path, transport or on-engine-loss in a flow, found 'program'"]),
    ("flows: [{ match: {}, path: fast }]", ["m.yaml:1:28: error: expected kernel or machnet, found 'fast'"]),
    ("flows: [{ match: {}, path: machnet, transport: tcp }]", ["m.yaml:1:48: error: expected udp or machnet, found 'tcp'"]),
    ("transport: { ports: 62000-62010 }", ["m.yaml:1:21: error: expected 16 or more UDP ports from 1024 on, such as 62000-62255, found '62000-62010'"]),
    ("transport: { packets: 63 }", ["m.yaml:1:23: error: expected a number of packets from 64 to 65536, found '63'"]),
    ("transport: { assemblies: many }", ["m.yaml:1:26: error: expected a number of messages from 8 to 4096, found 'many'"]),
    ("transport: { large-assemblies: 65 }", ["m.yaml:1:32: error: expected a number of messages from 0 to 64, found '65'"]),
    ("transport: { parkings: 0 }", ["m.yaml:1:24: error: expected a number of MiB from 1 to 256, found '0'"]),
    ("transport:\n  parking: 3", ["m.yaml:2:3: error: expected ports, target-delay-us, sessions, packets, assemblies, large-assemblies, parkings or pause-ms in the section 'transport', found 'parking'"]),
    ("transport: { sessions: 1000 }", ["m.yaml:1:24: error: expected a power of two from 2 to 16384, found '1000'"]),
    ("flows: [{ match: {}, path: machnet, on-engine-loss: panic }]", ["m.yaml:1:53: error: expected kernel or error, found 'panic'"]),
    ("flows: [{ match: { program: /usr/bin/x }, path: kernel }]", ["m.yaml:1:29: error: expected a program's file name of 1 to 63 bytes, '*' only at its end, found '/usr/bin/x'"]),
    ("flows: [{ match: { program: \"a*b\" }, path: kernel }]", ["m.yaml:1:29: error: expected a program's file name of 1 to 63 bytes, '*' only at its end, found 'a*b'"]),
    ("flows: [{ match: { program: \"\" }, path: kernel }]", ["m.yaml:1:29: error: expected a program's file name of 1 to 63 bytes, '*' only at its end, found ''"]),
    ("flows: [{ match: { local: 11211 }, path: kernel }]", ["m.yaml:1:27: error: expected an IPv4 address, ADDR/LEN or *, found '11211'"]),
    ("flows: [{ match: { local: \"*:0\" }, path: kernel }]", ["m.yaml:1:27: error: expected a port from 1 to 65535, LOW-HIGH or *, found '0'"]),
    ("flows: [{ match: { local: \"*:9-5\" }, path: kernel }]", ["m.yaml:1:27: error: expected a port range whose first port is not above its last, found '9-5'"]),
    ("flows: [{ match: { remote: 10.0.0.256 }, path: kernel }]", ["m.yaml:1:28: error: expected an IPv4 address, ADDR/LEN or *, found '10.0.0.256'"]),
    ("flows: [{ match: { remote: 010.0.0.1 }, path: kernel }]", ["m.yaml:1:28: error: expected an IPv4 address, ADDR/LEN or *, found '010.0.0.1'"]),
    ("flows: [{ match: { remote: 10.0.0.0/33 }, path: kernel }]", ["m.yaml:1:28: error: expected a prefix length from 0 to 32, found '33'"]),
    ("flows: [{ match: { remote: 10.0.0.1/24 }, path: kernel }]", ["m.yaml:1:28: error: expected a network address such as 10.0.0.0/24, found '10.0.0.1/24'"]),
    ("flows: [{ match: { remote: \"::1\" }, path: kernel }]", ["m.yaml:1:28: error: expected an IPv4 address pattern such as *:53, 10.0.1.9 or 10.0.1.0/24:5000-5999, found '::1'"]),
    ("flows: [{ match: { remote: 224.0.0.0/4 }, path: machnet }]", ["m.yaml:1:28: error: expected unicast addresses (multicast and broadcast stay on the kernel), found 224.0.0.0/4"]),
    ("flows: [{ match: { remote: [] }, path: machnet }]", ["m.yaml:1:28: error: expected an address pattern, found a list"]),
    (
      "engine: { cpus: [9] }\nwaiting: { spin: 5 }\nflows:\n  - { match: {}, path: up }",
      [
        "m.yaml:1:18: error: expected a CPU that the daemon may run on (0-3), found 9",
        "m.yaml:2:12: error: expected spin-us or yield in the section 'waiting', found 'spin'",
        "m.yaml:4:24: error: expected kernel or machnet, found 'up'",
      ]
    ),
  ]

  @Test(arguments: table)
  func aMistakeIsNamedWithItsPlaceAndWhatWasExpected(yaml: String, says: [String]) {
    #expect(mistakes(yaml) == says)
  }
}

@Suite struct RuleTests {
  /// What the compiled table says about a flow, as an application asks it: the line that was hit.
  func line(
    _ config: Config, program: String, local: String, _ localPort: UInt16, remote: String, _ remotePort: UInt16
  ) throws -> UInt32? {
    let localAddress = try #require(IPv4Address(local)).value
    let remoteAddress = try #require(IPv4Address(remote)).value
    var rules = config.rules
    return unsafe rules.withUnsafeMutableBufferPointer { buffer -> UInt32? in
      guard let base = buffer.baseAddress else { return nil }
      let set = unsafe RuleSet(unsafe: base, count: buffer.count)
      let mask = unsafe program.withCString { name in unsafe set.mask(programs: name, name) }
      let hit = set.first(
        program: mask, localAddress: localAddress, localPort: localPort, remoteAddress: remoteAddress,
        remotePort: remotePort)
      return hit.map { set.rule($0).line }
    }
  }

  @Test func firstMatchWinsAndNoMatchMeansTheKernel() throws {
    let config = try Config(
      yaml: """
        flows:
          - { match: { program: memcached, local: "*:11211" }, path: machnet }
          - { match: { remote: "10.0.1.9" }, path: kernel }
          - { match: { program: "python*", remote: "10.0.1.0/24:5000-5999" }, path: machnet }
          - { match: { local: "127.0.0.0/8:53", remote: 127.0.0.0/8 }, path: machnet }
        """, machine: smallMachine)
    let table: [(String, String, UInt16, String, UInt16, UInt32?)] = [
      ("memcached", "10.0.1.4", 11211, "10.0.1.9", 40000, 2),
      ("memcached", "10.0.1.4", 11212, "10.0.1.9", 40000, 3),
      ("memcache", "10.0.1.4", 11211, "10.0.1.8", 40000, nil),
      ("memcachedx", "10.0.1.4", 11211, "10.0.1.8", 40000, nil),
      ("python3.11", "10.0.1.4", 1, "10.0.1.8", 5000, 4),
      ("python", "10.0.1.4", 1, "10.0.1.255", 5999, 4),
      ("python", "10.0.1.4", 1, "10.0.1.8", 6000, nil),
      ("python", "10.0.1.4", 1, "10.0.1.8", 4999, nil),
      ("python", "10.0.1.4", 1, "10.0.1.9", 5000, 3),
      ("python", "10.0.1.4", 1, "10.0.2.0", 5000, nil),
      ("pytho", "10.0.1.4", 1, "10.0.1.8", 5000, nil),
      ("nsd", "127.0.0.1", 53, "127.255.0.1", 9, 5),
      ("nsd", "128.0.0.1", 53, "127.0.0.1", 9, nil),
    ]
    for (program, local, localPort, remote, remotePort, expected) in table {
      let found = try line(config, program: program, local: local, localPort, remote: remote, remotePort)
      #expect(found == expected, "\(program) \(local):\(localPort) -> \(remote):\(remotePort)")
    }
  }

  @Test func aRuleCarriesPathTransportAndLoss() throws {
    let config = try Config(
      yaml: "flows: [{ match: {}, path: machnet, on-engine-loss: error }, { match: {}, path: kernel }]",
      machine: smallMachine)
    let rules = config.rules
    #expect(rules.map { Int($0.path) } == [MN_PATH_MACHNET, MN_PATH_KERNEL])
    #expect(rules.map { Int($0.on_engine_loss) } == [MN_LOSS_ERROR, MN_LOSS_KERNEL])
    #expect(rules.map { Int($0.transport) } == [MN_TRANSPORT_UDP, MN_TRANSPORT_UDP])
  }
}
