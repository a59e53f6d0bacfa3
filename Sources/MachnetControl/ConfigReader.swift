import CMachnetABI
package import Yams

/// What a config is checked against besides itself.
public struct Machine: Sendable {
  /// CPUs that the daemon may run on.
  public var processors: Set<Int>
  public var hasGroup: @Sendable (String) -> Bool

  public init(processors: Set<Int>, hasGroup: @escaping @Sendable (String) -> Bool) {
    self.processors = processors
    self.hasGroup = hasGroup
  }
}

extension Config {
  /// Reads a config file's text. Goes on after a mistake, so that one run names them all.
  public init(yaml: String, machine: Machine) throws(ConfigMistakes) {
    var reader = ConfigReader(machine: machine)
    let config = reader.read(yaml)
    guard reader.mistakes.isEmpty else {
      throw ConfigMistakes(mistakes: reader.mistakes.sorted { ($0.line, $0.column) < ($1.line, $1.column) })
    }
    self = config
  }
}

/// Walks the YAML tree. A mistake is noted at the place of the node that shows it; the default stands in for the value.
package struct ConfigReader {
  let machine: Machine
  package var mistakes: [ConfigMistake] = []

  package init(machine: Machine) { self.machine = machine }

  mutating func read(_ yaml: String) -> Config {
    var config = Config()
    guard let root = compose(yaml) else { return config }
    let top = mapping(
      root, "the config",
      keys: ["interfaces", "engine", "control", "channel", "waiting", "profiles", "limits", "transport", "metrics", "flows"],
      mayBeNull: true)
    config.engine = engine(top["engine"])
    config.interfaces = interfaces(top["interfaces"], areHosts: config.engine.separateHosts)
    config.control = control(top["control"])
    config.channel = channel(top["channel"])
    config.waiting = waiting(top["waiting"])
    config.profiles.merge(profiles(top["profiles"])) { $1 }
    config.limits = limits(top["limits"])
    config.transport = transport(top["transport"])
    config.metrics = metrics(top["metrics"])
    config.flows = flows(top["flows"])
    return config
  }

  // MARK: Sections

  /// - Parameter areHosts: each is a host of its own: several may be on one subnet.
  private mutating func interfaces(_ node: Node?, areHosts: Bool) -> [Config.Interface] {
    var interfaces: [Config.Interface] = []
    for item in sequence(node, "a list of interfaces", atMost: Int(MN_INTERFACES_MAX)) {
      guard let interface = interface(item) else { continue }
      let fields = item.mapping
      if interfaces.contains(where: { $0.name == interface.name }) {
        note(fields?["name"] ?? item, "expected every interface to have its own name, found '\(interface.name)' again")
      }
      if areHosts, let other = interfaces.first(where: { $0.prefix.address == interface.prefix.address }) {
        note(
          fields?["address"] ?? item,
          "expected every host to have its own address, found that of '\(other.name)' again")
      } else if !areHosts, let other = interfaces.first(where: { $0.prefix.overlaps(interface.prefix) }) {
        note(
          fields?["address"] ?? item,
          "expected every interface to have its own subnet, found \(interface.prefix), which overlaps \(other.prefix)"
            + " of '\(other.name)'")
      }
      interfaces.append(interface)
    }
    return interfaces
  }

  private mutating func interface(_ node: Node) -> Config.Interface? {
    let fields = mapping(
      node, "an interface", keys: ["name", "address", "gateway", "device", "mtu", "queues"],
      required: ["name", "address", "device"])
    let name = text(fields["name"], "a name of 1 to 32 letters, digits, '.', '_' or '-'") {
      $0.count <= 32 && $0.utf8.allSatisfy { isWord($0) || $0 == 46 } && !$0.isEmpty ? $0 : nil
    }
    let prefix = text(fields["address"], "an IPv4 address with its prefix length, such as 10.0.1.4/24") {
      interfacePrefix($0)
    }
    var gateway: IPv4Address?
    if let node = fields["gateway"], let found = text(node, "an IPv4 address", { IPv4Address($0) }) {
      gateway = found
      if let prefix, found.value & prefix.mask != prefix.network || found == prefix.address {
        note(node, "expected another address of the subnet \(IPv4Address(prefix.network))/\(prefix.length), found \(found)")
      }
    }
    let device = device(fields["device"])
    // RFC 791: every host takes 576 bytes, and the length field has 16 bits.
    let mtu = integer(fields["mtu"], 576...65535, "bytes")
    let queues = integer(fields["queues"], 1...Int(MN_ENGINES_MAX), "queues") ?? 1
    guard let name, let prefix, let device else { return nil }
    return Config.Interface(name: name, prefix: prefix, gateway: gateway, device: device, mtu: mtu, queues: queues)
  }

  private mutating func device(_ node: Node?) -> Config.Interface.Device? {
    guard let node else { return nil }
    let fields = mapping(node, "a device", keys: ["pci", "vdev", "vmbus", "vf"])
    if let vf = fields["vf"], fields["vmbus"] == nil { note(vf, "expected 'vf' beside 'vmbus' only, which it serves") }
    switch (fields["pci"], fields["vdev"], fields["vmbus"]) {
    case (let pci?, nil, nil):
      return text(pci, "a PCI address such as \"0000:00:06.0\"") { pciAddress($0).map { .pci($0) } }
    case (nil, let vdev?, nil):
      return text(vdev, "a DPDK virtual device such as \"net_memif0,role=server,socket=/run/machnet/net0.sock\"") {
        isVirtualDevice($0) ? .vdev($0) : nil
      }
    case (nil, nil, let vmbus?):
      let vf = text(fields["vf"], "a PCI address such as \"0002:00:02.0\"") { pciAddress($0) }
      return text(vmbus, "the UUID of a VMBus device such as \"7a08391f-f5a0-4ac0-9802-d13fd964f8df\"") {
        isUUID($0) ? .vmbus($0.lowercased(), virtualFunction: vf) : nil
      }
    case (nil, nil, nil):
      if case .mapping = node { note(node, "expected 'pci', 'vdev' or 'vmbus' in a device, found none of them") }
    default:
      note(node, "expected one of 'pci', 'vdev' and 'vmbus' in a device, found more")
    }
    return nil
  }

  private mutating func engine(_ node: Node?) -> Config.Engine {
    var engine = Config.Engine()
    let fields = mapping(node, "the section 'engine'", keys: ["cpus", "polling", "idle-us", "separate-hosts", "stall-s"], mayBeNull: true)
    var cpus: [Int] = []
    for item in sequence(fields["cpus"], "a list of CPUs", atMost: Int(MN_ENGINES_MAX)) {
      guard let cpu = text(item, "the number of a CPU", { decimal($0, in: 0...65535) }) else { continue }
      if !machine.processors.contains(cpu) {
        note(item, "expected a CPU that the daemon may run on (\(ranges(machine.processors))), found \(cpu)")
      } else if cpus.contains(cpu) {
        note(item, "expected every CPU once, found \(cpu) again")
      }
      cpus.append(cpu)
    }
    engine.cpus = cpus
    engine.polling = choice(fields["polling"]) ?? engine.polling
    engine.idleMicroseconds = integer(fields["idle-us"], 0...1_000_000, "microseconds") ?? engine.idleMicroseconds
    engine.stallSeconds = integer(fields["stall-s"], 0...3600, "seconds") ?? engine.stallSeconds
    engine.separateHosts = text(fields["separate-hosts"], "true or false", { Bool($0) }) ?? engine.separateHosts
    return engine
  }

  private mutating func control(_ node: Node?) -> Config.Control {
    var control = Config.Control()
    let fields = mapping(node, "the section 'control'", keys: ["socket", "mode", "group", "operators"], mayBeNull: true)
    control.socket =
      text(fields["socket"], "an absolute path of at most 107 bytes") {
        $0.hasPrefix("/") && $0.utf8.count <= 107 && !$0.utf8.contains(0) ? $0 : nil
      } ?? control.socket
    control.mode =
      text(fields["mode"], "octal permissions such as \"0660\"") {
        $0.count <= 4 ? UInt32($0, radix: 8).flatMap { $0 <= 0o777 ? $0 : nil } : nil
      } ?? control.mode
    let machine = machine
    control.group = text(fields["group"], "a group of this machine") { machine.hasGroup($0) ? $0 : nil }
    control.operators = text(fields["operators"], "a group of this machine") { machine.hasGroup($0) ? $0 : nil }
    return control
  }

  private mutating func channel(_ node: Node?) -> Config.Channel {
    var channel = Config.Channel()
    let fields = mapping(
      node, "the section 'channel'",
      keys: ["endpoints", "tx-ring", "rx-ring", "max-channels-per-process", "max-endpoints"], mayBeNull: true)
    let perChannel = 1...Int(MN_CHANNEL_ENDPOINTS_MAX)
    channel.endpoints = integer(fields["endpoints"], perChannel, "endpoints") ?? channel.endpoints
    channel.transmitRing = ringSize(fields["tx-ring"]) ?? channel.transmitRing
    channel.receiveRing = ringSize(fields["rx-ring"]) ?? channel.receiveRing
    channel.maximumPerProcess =
      integer(fields["max-channels-per-process"], 1...Int(MN_CHANNELS_PER_PROCESS_MAX), "channels")
      ?? channel.maximumPerProcess
    // The table of local endpoints is never fuller than three quarters.
    channel.maximumEndpoints =
      integer(fields["max-endpoints"], 1...Int(MN_LOCAL_SLOTS) / 4 * 3, "endpoints") ?? channel.maximumEndpoints
    return channel
  }

  private mutating func waiting(_ node: Node?) -> Config.Waiting {
    var waiting = Config.Waiting()
    let fields = mapping(node, "the section 'waiting'", keys: ["spin-us", "yield"], mayBeNull: true)
    waiting.spinMicroseconds = integer(fields["spin-us"], 0...1_000_000, "microseconds") ?? waiting.spinMicroseconds
    let choices: [String: Bool?] = ["auto": nil, "true": true, "false": false]
    waiting.yields = text(fields["yield"], "auto, true or false") { choices[$0] } ?? nil
    return waiting
  }

  private mutating func profiles(_ node: Node?) -> [String: Config.Profile] {
    guard let node, !isNull(node) else { return [:] }
    guard case .mapping(let pairs) = node else {
      note(node, "expected profiles by name, found \(kind(node))")
      return [:]
    }
    guard pairs.count <= 64 else {
      note(node, "expected at most 64 profiles, found \(pairs.count)")
      return [:]
    }
    var profiles: [String: Config.Profile] = [:]
    for (key, value) in pairs {
      guard let name = key.scalar?.string, !name.isEmpty, name.utf8.count <= 32, name.utf8.allSatisfy(isWord) else {
        note(key, "expected a name of 1 to 32 letters, digits, '_' or '-', found \(kind(key))")
        continue
      }
      let fields = mapping(value, "the profile '\(name)'", keys: ["spin-us", "yield", "restartable-sequences", "fifo"], mayBeNull: true)
      profiles[name] = Config.Profile(
        spinMicroseconds: integer(fields["spin-us"], 0...1_000_000, "microseconds"),
        yields: text(fields["yield"], "true or false") { Bool($0) },
        restartableSequences: text(fields["restartable-sequences"], "true or false") { Bool($0) },
        fifo: text(fields["fifo"], "a priority from 1 to 99") { decimal($0, in: 1...99) })
    }
    return profiles
  }

  private mutating func limits(_ node: Node?) -> Config.Limits {
    var limits = Config.Limits()
    let fields = mapping(node, "the section 'limits'", keys: ["connections", "connections-per-user"], mayBeNull: true)
    limits.connections = integer(fields["connections"], 1...65536, "connections") ?? limits.connections
    limits.connectionsPerUser =
      integer(fields["connections-per-user"], 1...65536, "connections") ?? limits.connectionsPerUser
    return limits
  }

  private mutating func transport(_ node: Node?) -> Config.Transport {
    var transport = Config.Transport()
    let fields = mapping(
      node, "the section 'transport'",
      keys: [
        "ports", "target-delay-us", "sessions", "packets", "assemblies", "large-assemblies", "parkings", "pause-ms",
      ], mayBeNull: true)
    transport.ports =
      text(fields["ports"], "16 or more UDP ports from 1024 on, such as 62000-62255") {
        let ends = $0.split(separator: "-", omittingEmptySubsequences: false)
        guard ends.count == 2, let low = decimal(ends[0], in: 1024...65535),
          let high = decimal(ends[1], in: 1024...65535), high - low >= 15
        else { return nil }
        return UInt16(low)...UInt16(high)
      } ?? transport.ports
    transport.targetDelayMicroseconds =
      integer(fields["target-delay-us"], 10...10_000, "microseconds") ?? transport.targetDelayMicroseconds
    transport.sessions =
      text(fields["sessions"], "a power of two from 2 to 16384") {
        decimal($0[...], in: 2...16384).flatMap { $0 & ($0 - 1) == 0 ? $0 : nil }
      } ?? transport.sessions
    transport.packets = integer(fields["packets"], 64...65536, "packets") ?? transport.packets
    transport.assemblies = integer(fields["assemblies"], 8...4096, "messages") ?? transport.assemblies
    transport.largeAssemblies =
      integer(fields["large-assemblies"], 0...64, "messages") ?? transport.largeAssemblies
    transport.parkings = integer(fields["parkings"], 1...256, "MiB") ?? transport.parkings
    transport.pauseMilliseconds =
      integer(fields["pause-ms"], 0...10_000, "milliseconds") ?? transport.pauseMilliseconds
    return transport
  }

  private mutating func metrics(_ node: Node?) -> Config.Metrics {
    let fields = mapping(node, "the section 'metrics'", keys: ["listen"], mayBeNull: true)
    let listen = text(
      fields["listen"], "a loopback address with a port, such as 127.0.0.1:9464, or an absolute path of at most 107 bytes"
    ) { text -> Config.Metrics.Listen? in
      if text.hasPrefix("/") { return text.utf8.count <= 107 && !text.utf8.contains(0) ? .path(text) : nil }
      guard let colon = text.lastIndex(of: ":"), let port = decimal(text[text.index(after: colon)...], in: 1...65535) else { return nil }
      let host = text[..<colon]
      if host == "[::1]" { return .address("::1", port: port) }
      guard let address = IPv4Address(host), address.value >> 24 == 127 else { return nil }
      return .address("\(address)", port: port)
    }
    return Config.Metrics(listen: listen)
  }

  private mutating func flows(_ node: Node?) -> [Config.Flow] {
    var flows: [Config.Flow] = []
    for item in sequence(node, "a list of flows", atMost: Int(MN_RULES_MAX)) {
      if let flow = flow(item) { flows.append(flow) }
    }
    return flows
  }

  private mutating func flow(_ node: Node) -> Config.Flow? {
    let fields = mapping(
      node, "a flow", keys: ["match", "path", "transport", "on-engine-loss"], required: ["match", "path"])
    let match = mapping(fields["match"], "'match'", keys: ["program", "local", "remote"])
    let path: Config.Flow.Path? = choice(fields["path"])
    var flow = Config.Flow(path: path ?? .kernel, line: node.mark?.line ?? 0)
    flow.program =
      text(match["program"], "a program's file name of 1 to \(MN_PROGRAM_MAX - 1) bytes, '*' only at its end") {
        let star = $0.firstIndex(of: "*")
        let fits = !$0.isEmpty && $0.utf8.count < Int(MN_PROGRAM_MAX) && !$0.contains("/") && !$0.utf8.contains(0)
        return fits && (star == nil || star == $0.index(before: $0.endIndex)) ? $0 : nil
      } ?? flow.program
    flow.local = pattern(match["local"])
    flow.remote = pattern(match["remote"])
    flow.transport = choice(fields["transport"]) ?? flow.transport
    flow.onEngineLoss = choice(fields["on-engine-loss"]) ?? flow.onEngineLoss
    let multicast = IPv4Prefix(address: IPv4Address(0xe000_0000), length: 3)  // RFC 1112: 224/4; with 240/4, broadcast
    if flow.path == .machnet, let node = match["remote"], flow.remote.prefix.length >= 3,
      flow.remote.prefix.overlaps(multicast)
    {
      note(node, "expected unicast addresses (multicast and broadcast stay on the kernel), found \(flow.remote)")
    }
    return path == nil ? nil : flow
  }

  private mutating func pattern(_ node: Node?) -> AddressPattern {
    guard let node, let string = scalar(node, "an address pattern") else { return .any }
    do throws(AddressPattern.Mistake) {
      return try AddressPattern(parsing: string)
    } catch {
      note(node, "expected \(error.expected), found \(quoted(error.found))")
      return .any
    }
  }
}

// MARK: - Nodes

extension ConfigReader {
  package mutating func note(_ node: Node?, _ message: String) {
    note(node?.mark, message)
  }

  private mutating func note(_ mark: Mark?, _ message: String) {
    mistakes.append(ConfigMistake(line: mark?.line ?? 0, column: mark?.column ?? 0, message: message))
  }

  /// The tree of a text, nil when it is empty or is not YAML.
  package mutating func compose(_ yaml: String) -> Node? {
    do {
      return try Yams.compose(yaml: yaml)
    } catch let error as YamlError {
      switch error {
      case .scanner(let context, let problem, let mark, _), .parser(let context, let problem, let mark, _),
        .composer(let context, let problem, let mark, _):
        let about = context.map { " (\($0.text) that starts at line \($0.mark.line))" } ?? ""
        note(mark, "expected YAML, found a mistake: \(problem)\(about)")
      case .duplicatedKeysInMapping(let duplicates, let context):
        note(context.mark, "expected every key once, found \(duplicates.map { "'\($0)'" }.joined(separator: ", ")) again")
      case .reader(let problem, _, _, _):
        note(nil as Mark?, "expected YAML in UTF-8, found a mistake: \(problem)")
      default:
        note(nil as Mark?, "expected YAML, found a mistake: \(error)")
      }
    } catch {
      note(nil as Mark?, "expected YAML, found a mistake: \(error)")
    }
    return nil
  }

  /// The fields of a mapping; unknown keys are mistakes. Absent: none; null likewise, if `mayBeNull`.
  package mutating func mapping(
    _ node: Node?, _ what: String, keys: [String], required: [String] = [], mayBeNull: Bool = false
  ) -> [String: Node] {
    guard let node, !(mayBeNull && isNull(node)) else { return [:] }
    guard case .mapping(let pairs) = node else {
      note(node, "expected \(what) with \(listed(keys)), found \(kind(node))")
      return [:]
    }
    var fields: [String: Node] = [:]
    for (key, value) in pairs {
      guard let name = key.scalar?.string, keys.contains(name) else {
        note(key, "expected \(listed(keys)) in \(what), found \(key.scalar.map { quoted($0.string) } ?? kind(key))")
        continue
      }
      fields[name] = value
    }
    for name in required where fields[name] == nil {
      note(node, "expected '\(name)' in \(what), found none")
    }
    return fields
  }

  package mutating func sequence(_ node: Node?, _ what: String, atMost limit: Int) -> [Node] {
    guard let node, !isNull(node) else { return [] }
    guard case .sequence(let items) = node else {
      note(node, "expected \(what), found \(kind(node))")
      return []
    }
    guard items.count <= limit else {
      note(node, "expected \(what) with at most \(limit) entries, found \(items.count)")
      return Array(items.prefix(limit))
    }
    return Array(items)
  }

  private mutating func scalar(_ node: Node, _ what: String) -> String? {
    if case .scalar(let scalar) = node { return scalar.string }
    note(node, "expected \(what), found \(kind(node))")
    return nil
  }

  /// A scalar that `read` understands; nil (and a mistake, if there is a node) otherwise.
  package mutating func text<Value>(_ node: Node?, _ what: String, _ read: (String) -> Value?) -> Value? {
    guard let node, let string = scalar(node, what) else { return nil }
    if let value = read(string) { return value }
    note(node, "expected \(what), found \(quoted(string))")
    return nil
  }

  package mutating func integer(_ node: Node?, _ range: ClosedRange<Int>, _ unit: String) -> Int? {
    text(node, "a number of \(unit) from \(range.lowerBound) to \(range.upperBound)") { decimal($0, in: range) }
  }

  private mutating func choice<Value: CaseIterable & RawRepresentable<String>>(_ node: Node?) -> Value? {
    text(node, listed(Value.allCases.map(\.rawValue))) { Value(rawValue: $0) }
  }

  /// Bytes, with K or M for 2^10 and 2^20.
  private mutating func ringSize(_ node: Node?) -> Int? {
    text(node, "a ring size that is a power of two from 256K to 64M") {
      let shift = $0.hasSuffix("K") ? 10 : $0.hasSuffix("M") ? 20 : 0
      guard let number = decimal(shift == 0 ? $0[...] : $0.dropLast(), in: 1...Int(MN_RING_MAX)) else { return nil }
      let size = number << shift
      let fits = size >= Int(MN_RING_MIN) && size <= Int(MN_RING_MAX) && size & (size - 1) == 0
      return fits ? size : nil
    }
  }
}

// MARK: - Formats

private func isNull(_ node: Node) -> Bool {
  if case .scalar(let scalar) = node { return scalar.style == .plain && ["", "~", "null"].contains(scalar.string) }
  return false
}

private func kind(_ node: Node) -> String {
  switch node {
  case .scalar(let scalar): quoted(scalar.string)
  case .mapping: "a mapping"
  case .sequence: "a list"
  case .alias: "an alias"
  }
}

/// As found, short enough for a line.
private func quoted(_ text: String) -> String {
  text.count <= 80 ? "'\(text)'" : "'\(text.prefix(77))...'"
}

/// `a, b or c`
private func listed(_ names: [String]) -> String {
  guard let last = names.last, names.count > 1 else { return names.first ?? "nothing" }
  return names.dropLast().joined(separator: ", ") + " or " + last
}

/// `0-3, 6`
private func ranges(_ numbers: Set<Int>) -> String {
  var parts: [ClosedRange<Int>] = []
  for number in numbers.sorted() {
    if let last = parts.last, last.upperBound + 1 == number {
      parts[parts.count - 1] = last.lowerBound...number
    } else {
      parts.append(number...number)
    }
  }
  return parts.map { $0.count == 1 ? "\($0.lowerBound)" : "\($0.lowerBound)-\($0.upperBound)" }.joined(separator: ", ")
}

private func isWord(_ byte: UInt8) -> Bool {
  switch byte {
  case 48...57, 65...90, 97...122, 95, 45: true
  default: false
  }
}

/// A host's address: neither the subnet's first nor its last (RFC 1122, 3.2.1.3; RFC 3021 for /31), unicast.
private func interfacePrefix(_ text: String) -> IPv4Prefix? {
  let parts = text.split(separator: "/", omittingEmptySubsequences: false)
  guard parts.count == 2, let address = IPv4Address(parts[0]), let length = decimal(parts[1], in: 1...32) else {
    return nil
  }
  let prefix = IPv4Prefix(address: address, length: length)
  if length < 31 && (address.value == prefix.network || address.value == prefix.network | ~prefix.mask) { return nil }
  if address.value >> 24 == 0 || address.value >> 24 == 127 || address.value >> 29 == 7 { return nil }
  return prefix
}

/// `[domain:]bus:device.function` in hexadecimal, perhaps with the driver's arguments; as DPDK writes it, because it finds ports
/// by their names.
private func pciAddress(_ text: String) -> String? {
  let pattern = #/(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}:[0-1][0-9a-fA-F]\.[0-7])((?:,[A-Za-z0-9_\-]+(?:=[^,]*)?)*)/#
  guard let match = try? pattern.wholeMatch(in: text) else { return nil }
  let domain = String(match.1.flatMap { UInt32($0, radix: 16) } ?? 0, radix: 16)
  return String(repeating: "0", count: max(0, 4 - domain.count)) + "\(domain):\(match.2.lowercased())\(match.3)"
}

private func isVirtualDevice(_ text: String) -> Bool {
  let pattern = #/net_[a-z][a-z0-9_]*(,[A-Za-z0-9_\-]+(=[^,]*)?)*/#
  return (try? pattern.wholeMatch(in: text)) != nil
}

/// RFC 9562, section 4.
private func isUUID(_ text: String) -> Bool {
  let pattern = #/[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}/#
  return (try? pattern.wholeMatch(in: text)) != nil
}
