import MachnetSimulation

/// What the fabric has done so far.
struct FabricReport {
  struct VNIC {
    var name: String
    var isUp: Bool
    var counters: NetworkCounters
    var tooLong: UInt64
    var deliveredByQueue: [UInt64]
    /// In the switch's queue towards the daemon, ns: median, 99th percentile, longest.
    var queueing: [UInt64]

    var numbers: [(name: String, value: UInt64)] {
      [
        ("sent", counters.sent), ("sent_bytes", counters.sentBytes), ("delivered", counters.delivered),
        ("delivered_bytes", counters.deliveredBytes), ("lost", counters.lost), ("duplicated", counters.duplicated),
        ("reordered", counters.reordered), ("corrupted", counters.corrupted), ("partitioned", counters.partitioned),
        ("queue_drops", counters.queueDrops), ("overflowed", counters.overflowed), ("link_down", counters.linkDown),
        ("unknown_destination", counters.unknownDestination), ("flooded", counters.flooded),
        ("no_buffer", counters.noBuffer), ("too_long", tooLong),
      ]
    }
  }

  var seed: UInt64
  var nanoseconds: UInt64
  var vnics: [VNIC]

  /// For people: what is 0 is left out.
  var text: String {
    var lines = ["seed \(seed), \(nanoseconds / 1_000_000) ms"]
    for vnic in vnics {
      let counts = vnic.numbers.filter { $0.value != 0 }.map { "\($0.name) \($0.value)" }.joined(separator: ", ")
      lines.append("  \(vnic.name) (\(vnic.isUp ? "up" : "down")): \(counts.isEmpty ? "nothing" : counts)")
      let queues = vnic.deliveredByQueue.map(String.init).joined(separator: ", ")
      let delays = vnic.queueing.map { "\($0 / 1000)" }.joined(separator: ", ")
      lines.append("    by queue: \(queues); waited in the switch, us (p50, p99, max): \(delays)")
    }
    return lines.joined(separator: "\n")
  }

  /// One line. Names hold nothing that would need an escape.
  var json: String {
    let vnics = vnics.map { vnic in
      let counts = vnic.numbers.map { "\"\($0.name)\":\($0.value)" }.joined(separator: ",")
      let queues = vnic.deliveredByQueue.map(String.init).joined(separator: ",")
      return "{\"name\":\"\(vnic.name)\",\"up\":\(vnic.isUp),\(counts),\"delivered_by_queue\":[\(queues)],"
        + "\"queueing_ns\":{\"p50\":\(vnic.queueing[0]),\"p99\":\(vnic.queueing[1]),\"max\":\(vnic.queueing[2])}}"
    }
    return "{\"seed\":\(seed),\"nanoseconds\":\(nanoseconds),\"vnics\":[\(vnics.joined(separator: ","))]}"
  }
}
