/// JSON (RFC 8259), written from left to right. No tree is built of it, so that a report of thousands of sockets takes
/// milliseconds.
struct JSONText {
  private(set) var bytes: [UInt8] = []
  private var depth = 0
  /// Nothing stands in the innermost object or list yet.
  private var isEmpty = true
  /// Objects within are written on one line.
  private var isInline = false

  var string: String { String(decoding: bytes, as: UTF8.self) }

  mutating func object(_ body: (inout JSONText) -> Void) { enclosed(UInt8(ascii: "{"), UInt8(ascii: "}"), body) }

  /// An object on one line.
  mutating func row(_ body: (inout JSONText) -> Void) {
    let outer = isInline
    isInline = true
    object(body)
    isInline = outer
  }

  mutating func list<Element>(_ key: some CodingKey, _ elements: [Element], _ write: (inout JSONText, Element) -> Void) {
    self.key(key.stringValue)
    enclosed(UInt8(ascii: "["), UInt8(ascii: "]")) { text in
      for element in elements {
        text.separate()
        write(&text, element)
      }
    }
  }

  mutating func field(_ key: some CodingKey, _ body: (inout JSONText) -> Void) {
    self.key(key.stringValue)
    body(&self)
  }

  mutating func field(_ key: some CodingKey, _ value: String?) {
    guard let value else { return }
    self.key(key.stringValue)
    quote(value)
  }

  mutating func field(_ key: some CodingKey, _ value: (some BinaryInteger)?) {
    guard let value else { return }
    self.key(key.stringValue)
    write("\(value)")
  }

  /// A number that JSON has no word for (an infinity, NaN) is 0.
  mutating func field(_ key: some CodingKey, _ value: Double?) {
    guard let value else { return }
    self.key(key.stringValue)
    write(value.isFinite ? "\(value)" : "0")
  }

  mutating func field(_ key: some CodingKey, _ value: Bool) {
    self.key(key.stringValue)
    write(value ? "true" : "false")
  }

  /// Names and counts, in the order of the names.
  mutating func field(_ key: some CodingKey, _ counts: [String: UInt64]) {
    self.key(key.stringValue)
    row { text in text.counts(counts) }
  }

  mutating func counts(_ counts: [String: UInt64]) {
    if counts.isEmpty { return }
    for (name, count) in counts.sorted(by: { $0.key < $1.key }) {
      key(name)
      write("\(count)")
    }
  }

  mutating func quote(_ value: String) {
    bytes.append(UInt8(ascii: "\""))
    for byte in value.utf8 {
      switch byte {
      case UInt8(ascii: "\""), UInt8(ascii: "\\"):
        bytes.append(UInt8(ascii: "\\"))
        bytes.append(byte)
      case 0..<0x20:
        write("\\u00\(byte < 16 ? "0" : "")\(String(byte, radix: 16))")
      default: bytes.append(byte)
      }
    }
    bytes.append(UInt8(ascii: "\""))
  }

  private mutating func enclosed(_ open: UInt8, _ close: UInt8, _ body: (inout JSONText) -> Void) {
    bytes.append(open)
    depth += 1
    isEmpty = true
    body(&self)
    depth -= 1
    if !isEmpty && !isInline { newLine() }
    bytes.append(close)
    isEmpty = false
  }

  private mutating func key(_ name: String) {
    separate()
    quote(name)
    write(": ")
  }

  private mutating func separate() {
    if !isEmpty { write(isInline ? ", " : ",") }
    if !isInline { newLine() }
    isEmpty = false
  }

  private mutating func newLine() {
    bytes.append(UInt8(ascii: "\n"))
    for _ in 0..<depth { write("  ") }
  }

  private mutating func write(_ text: String) { bytes.append(contentsOf: text.utf8) }
}

extension StatusReport {
  public var json: String {
    var text = JSONText()
    text.object { text in
      text.field(CodingKeys.daemon, daemon.write)
      text.list(CodingKeys.engines, engines) { $1.write(to: &$0) }
      text.list(CodingKeys.interfaces, interfaces) { $1.write(to: &$0) }
      text.list(CodingKeys.processes, processes) { $1.write(to: &$0) }
      text.list(CodingKeys.sockets, sockets) { $1.write(to: &$0) }
      if let unclaimed { text.list(CodingKeys.unclaimed, unclaimed) { $1.write(to: &$0) } }
    }
    return text.string
  }
}

extension StatusReport.DaemonStatus {
  func write(to text: inout JSONText) {
    text.object { text in
      text.field(CodingKeys.pid, pid)
      text.field(CodingKeys.uptimeSeconds, uptimeSeconds)
      text.field(CodingKeys.epoch, epoch)
      text.field(CodingKeys.rulesGeneration, rulesGeneration)
      text.field(CodingKeys.rules, rules)
      text.field(CodingKeys.controlSocket, controlSocket)
      text.field(CodingKeys.connections, connections)
      text.field(CodingKeys.channels, channels)
      text.field(CodingKeys.endpoints, endpoints)
      text.field(CodingKeys.departing, departing)
      text.field(CodingKeys.requests, requests)
      text.field(CodingKeys.refusedRequests, refusedRequests)
      text.field(CodingKeys.refusedConnections, refusedConnections)
      text.field(CodingKeys.disconnectedLiars, disconnectedLiars)
      text.field(CodingKeys.damagedChannels, damagedChannels)
      text.field(CodingKeys.abandonedDatagrams, abandonedDatagrams)
    }
  }
}

extension StatusReport.EngineStatus {
  func write(to text: inout JSONText) {
    text.object { text in
      text.field(Key.index, index)
      text.field(Key.cpu, cpu)
      text.field(Key.polling, polling)
      text.field(Key.sleeping, sleeping)
      text.field(Key.stalledSeconds, stalledSeconds)
      text.list(Key.interfaces, interfaces) { $0.quote($1) }
      text.field(Key.drops, drops)
      text.field(Key.transport, transport)
      text.list(Key.sessions, sessions) { $1.write(to: &$0) }
      text.counts(Dictionary(uniqueKeysWithValues: counters.map { (snakeCase($0.key), $0.value) }))
    }
  }
}

extension StatusReport.SessionStatus {
  func write(to text: inout JSONText) {
    text.object { text in
      text.field(CodingKeys.local, local)
      text.field(CodingKeys.remote, remote)
      text.field(CodingKeys.remoteEngine, remoteEngine)
      text.field(CodingKeys.state, state)
      text.field(CodingKeys.setUpMicroseconds, setUpMicroseconds)
      text.field(CodingKeys.smoothedRttMicroseconds, smoothedRttMicroseconds)
      text.field(CodingKeys.minimumRttMicroseconds, minimumRttMicroseconds)
      text.field(CodingKeys.congestionWindow, congestionWindow)
      text.field(CodingKeys.inFlight, inFlight)
      text.field(CodingKeys.packetsSent, packetsSent)
      text.field(CodingKeys.packetsReceived, packetsReceived)
      text.field(CodingKeys.retransmissions, retransmissions)
    }
  }
}

extension StatusReport.InterfaceStatus {
  func write(to text: inout JSONText) {
    text.object { text in
      text.field(CodingKeys.name, name)
      text.field(CodingKeys.address, address)
      text.field(CodingKeys.gateway, gateway)
      text.field(CodingKeys.device, device)
      text.field(CodingKeys.mtu, mtu)
      text.field(CodingKeys.mac, mac)
      text.list(CodingKeys.neighbours, neighbours) { text, neighbour in
        text.row { text in
          text.field(StatusReport.NeighbourStatus.CodingKeys.address, neighbour.address)
          text.field(StatusReport.NeighbourStatus.CodingKeys.mac, neighbour.mac)
          text.field(StatusReport.NeighbourStatus.CodingKeys.state, neighbour.state)
        }
      }
    }
  }
}

extension StatusReport.ProcessStatus {
  func write(to text: inout JSONText) {
    text.object { text in
      text.field(CodingKeys.pid, pid)
      text.field(CodingKeys.uid, uid)
      text.field(CodingKeys.program, program)
      text.field(CodingKeys.channels, channels)
      text.field(CodingKeys.sockets, sockets)
      text.field(CodingKeys.connectedSeconds, connectedSeconds)
      text.list(CodingKeys.refusals, refusals) { $1.write(to: &$0) }
    }
  }
}

extension StatusReport.RefusalStatus {
  func write(to text: inout JSONText) {
    text.object { text in
      text.field(CodingKeys.request, request)
      text.field(CodingKeys.error, error)
      text.field(CodingKeys.reason, reason)
      text.field(CodingKeys.inode, inode)
      text.field(CodingKeys.count, count)
      text.field(CodingKeys.secondsAgo, secondsAgo)
    }
  }
}

extension StatusReport.SocketStatus {
  func write(to text: inout JSONText) {
    text.object { text in
      text.field(CodingKeys.program, program)
      text.field(CodingKeys.pid, pid)
      text.field(CodingKeys.local, local)
      text.field(CodingKeys.peer, peer)
      text.field(CodingKeys.netns, netns)
      text.field(CodingKeys.verdict, verdict)
      text.field(CodingKeys.ruleLine, ruleLine)
      text.field(CodingKeys.transport, transport)
      text.field(CodingKeys.homeEngine, homeEngine)
      text.field(CodingKeys.inode, inode)
      text.field(CodingKeys.sinceSeconds, sinceSeconds)
      text.field(CodingKeys.channel, channel)
      text.field(CodingKeys.endpoint, endpoint)
      text.field(CodingKeys.engine, engine.write)
      text.field(CodingKeys.kernel, kernel.write)
      text.field(CodingKeys.drops, drops)
      text.field(CodingKeys.wakeups, wakeups)
    }
  }
}

extension StatusReport.UnclaimedStatus {
  func write(to text: inout JSONText) {
    text.object { text in
      text.field(CodingKeys.inode, inode)
      text.field(CodingKeys.program, program)
      text.field(CodingKeys.pid, pid)
      text.field(CodingKeys.datagrams, datagrams)
      text.field(CodingKeys.sinceSeconds, sinceSeconds)
    }
  }
}

extension StatusReport.Traffic {
  func write(to text: inout JSONText) {
    text.row { text in
      for (way, amount) in [(CodingKeys.rx, rx), (CodingKeys.tx, tx)] {
        text.field(way) { text in
          text.row { text in
            text.field(StatusReport.Amount.CodingKeys.datagrams, amount.datagrams)
            text.field(StatusReport.Amount.CodingKeys.bytes, amount.bytes)
          }
        }
      }
    }
  }
}
