import MachnetControl
import MachnetSimulation
import Yams

/// What the fabric is made of, and what it does to frames.
struct FabricConfig {
  struct VNIC {
    /// Letters, digits, '_' and '-'.
    var name: String
    /// Of the memif, served by the fabric.
    var socket: String
    /// As many as the daemon's interface has.
    var queues = 1
    var link: LinkOptions
    var faults: Faults
  }

  /// nil: a random one.
  var seed: UInt64?
  /// nil: where the system likes.
  var cpu: Int?
  var partitions: Schedule?
  var vnics: [VNIC] = []

  static let vnicsMax = 32
  static let queuesMax = 16

  /// A switch, unless something else is said: no limit and no delay.
  static var link: LinkOptions {
    var link = LinkOptions()
    link.bandwidth = 0
    link.delay = 0
    return link
  }

  static func load(file: String) throws(ConfigFailure) -> FabricConfig {
    let text = try Config.read(file)
    var reader = ConfigReader(machine: .current)
    let config = reader.fabric(text)
    guard reader.mistakes.isEmpty else {
      let sorted = reader.mistakes.sorted { ($0.line, $0.column) < ($1.line, $1.column) }
      throw ConfigFailure(description: sorted.map { $0.description(file: file) }.joined(separator: "\n"))
    }
    return config
  }
}

extension ConfigReader {
  mutating func fabric(_ yaml: String) -> FabricConfig {
    var config = FabricConfig()
    guard let root = compose(yaml) else { return config }
    let top = mapping(
      root, "the fabric's config", keys: ["seed", "cpu", "link", "faults", "partitions", "vnics"], required: ["vnics"])
    config.seed = text(top["seed"], "a number below 2^64") { UInt64($0) }
    config.cpu = integer(top["cpu"], 0...1023, "a CPU")
    let commonLink = link(top["link"], FabricConfig.link)
    let commonFaults = faults(top["faults"], .none)
    config.partitions = partitions(top["partitions"])
    for item in sequence(top["vnics"], "a list of vNICs", atMost: FabricConfig.vnicsMax) {
      let fields = mapping(
        item, "a vNIC", keys: ["name", "socket", "queues", "link", "faults"], required: ["name", "socket"])
      let name = text(fields["name"], "a name of 1 to 32 letters, digits, '_' or '-'") { VNICName.parse($0) }
      let socket = text(fields["socket"], "an absolute path of at most 107 bytes, without a comma") {
        VNICName.parseSocket($0)
      }
      let queues = integer(fields["queues"], 1...FabricConfig.queuesMax, "queues") ?? 1
      let link = link(fields["link"], commonLink)
      let faults = faults(fields["faults"], commonFaults)
      guard let name, let socket else { continue }
      if config.vnics.contains(where: { $0.name == name || $0.socket == socket }) {
        note(item, "expected every vNIC to have its own name and socket, found '\(name)' and \(socket)")
      }
      config.vnics.append(FabricConfig.VNIC(name: name, socket: socket, queues: queues, link: link, faults: faults))
    }
    return config
  }

  private mutating func link(_ node: Node?, _ common: LinkOptions) -> LinkOptions {
    var link = common
    let fields = mapping(
      node, "a link", keys: ["bandwidth", "delay-us", "jitter-us", "queue-limit", "overhead"], mayBeNull: true)
    link.bandwidth =
      text(fields["bandwidth"], "bits per second, such as 100M or 10G (0: unlimited)") { Quantity.bandwidth($0) }
      ?? link.bandwidth
    link.delay = text(fields["delay-us"], "microseconds") { Quantity.nanoseconds($0, 1000) } ?? link.delay
    link.jitter = text(fields["jitter-us"], "microseconds") { Quantity.nanoseconds($0, 1000) } ?? link.jitter
    link.queueLimit = integer(fields["queue-limit"], 0...1 << 30, "bytes") ?? link.queueLimit
    link.overhead = integer(fields["overhead"], 0...256, "bytes") ?? link.overhead
    return link
  }

  private mutating func faults(_ node: Node?, _ common: Faults) -> Faults {
    var faults = common
    let fields = mapping(
      node, "faults",
      keys: [
        "loss", "loss-burst", "duplication", "duplication-us", "reordering", "reordering-us", "corruption",
      ], mayBeNull: true)
    faults.loss = probability(fields["loss"]) ?? faults.loss
    faults.lossBurst =
      text(fields["loss-burst"], "a mean number of frames from 1 to 1000000") { Quantity.decimal($0, in: 1...1_000_000) }
      ?? faults.lossBurst
    faults.duplication = probability(fields["duplication"]) ?? faults.duplication
    faults.duplicationDelay = range(fields["duplication-us"], 1000) ?? faults.duplicationDelay
    faults.reordering = probability(fields["reordering"]) ?? faults.reordering
    faults.reorderingDelay = range(fields["reordering-us"], 1000) ?? faults.reorderingDelay
    faults.corruption = probability(fields["corruption"]) ?? faults.corruption
    return faults
  }

  private mutating func partitions(_ node: Node?) -> Schedule? {
    let fields = mapping(node, "partitions", keys: ["every-ms", "for-ms"], required: ["every-ms", "for-ms"], mayBeNull: true)
    guard let interval = range(fields["every-ms"], 1_000_000), let duration = range(fields["for-ms"], 1_000_000) else {
      return nil
    }
    // A partition that begins when the last one has begun would be the only thing that ever happens.
    if interval.upperBound == 0 { note(fields["every-ms"], "expected more than 0") }
    return Schedule(interval: interval, duration: duration)
  }

  private mutating func probability(_ node: Node?) -> Double? {
    text(node, "a probability from 0 to 1") { Quantity.decimal($0, in: 0...1) }
  }

  private mutating func range(_ node: Node?, _ unit: Double) -> ClosedRange<UInt64>? {
    text(node, "a time, or a range of times such as 10-200") { Quantity.range($0, unit) }
  }
}

enum VNICName {
  static func parse(_ text: String) -> String? {
    let isWord = text.utf8.allSatisfy { byte in
      (48...57).contains(byte) || (65...90).contains(byte) || (97...122).contains(byte) || byte == 45 || byte == 95
    }
    return isWord && (1...32).contains(text.utf8.count) ? text : nil
  }

  /// The driver takes its arguments apart at commas.
  static func parseSocket(_ text: String) -> String? {
    text.hasPrefix("/") && text.utf8.count <= 107 && !text.contains(",") && !text.utf8.contains(0) ? text : nil
  }
}

/// Numbers as people write them.
enum Quantity {
  static func decimal(_ text: String, in range: ClosedRange<Double>) -> Double? {
    guard let value = Double(text), range.contains(value) else { return nil }
    return value
  }

  /// With K, M and G for 10^3, 10^6 and 10^9.
  static func bandwidth(_ text: String) -> UInt64? {
    let units: [Character: Double] = ["K": 1e3, "M": 1e6, "G": 1e9]
    let unit = text.last.flatMap { units[$0] }
    let value = decimal(String(unit == nil ? text[...] : text.dropLast()), in: 0...1e12).map { $0 * (unit ?? 1) }
    // Below that a frame takes minutes.
    guard let value, value == 0 || (1000...1e12).contains(value) else { return nil }
    return UInt64(value)
  }

  /// Up to an hour.
  static func nanoseconds(_ text: String, _ unit: Double) -> UInt64? {
    decimal(text, in: 0...3.6e12 / unit).map { UInt64($0 * unit) }
  }

  static func range(_ text: String, _ unit: Double) -> ClosedRange<UInt64>? {
    let parts = text.split(separator: "-", omittingEmptySubsequences: false).map { nanoseconds(String($0), unit) }
    switch parts.count {
    case 1: return parts[0].map { $0...$0 }
    case 2:
      guard let low = parts[0], let high = parts[1], low <= high else { return nil }
      return low...high
    default: return nil
    }
  }
}
