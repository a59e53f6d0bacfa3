import Foundation

/// What a daemon says about itself: the answer to `MN_REQUEST_STATUS`, JSON with snake_case keys.
///
/// Keys are stable: they may be added to, never renamed. Counts are since the start of what they belong to. Numbers of
/// the kernel's share and of wake-ups come from the applications and are as true as those are.
public struct StatusReport: Decodable, Sendable {
  public var daemon: DaemonStatus
  public var engines: [EngineStatus]
  public var interfaces: [InterfaceStatus]
  public var processes: [ProcessStatus]
  public var sockets: [SocketStatus]
  /// What was not received of endpoints that are no more, while their sockets live on in other programs: it goes to the next
  /// program with the preload library that shows the socket. nil: of an older daemon.
  public var unclaimed: [UnclaimedStatus]?

  public struct UnclaimedStatus: Decodable, Sendable {
    /// As /proc/PID/fd names the socket: `socket:[INODE]`.
    public var inode: UInt64
    /// Who had it.
    public var program: String
    public var pid: Int
    public var datagrams: Int
    /// How long it has been waiting.
    public var sinceSeconds: Double

    enum CodingKeys: String, CodingKey {
      case inode, program, pid, datagrams, sinceSeconds = "since_seconds"
    }
  }

  enum CodingKeys: String, CodingKey {
    case daemon, engines, interfaces, processes, sockets, unclaimed
  }

  public struct DaemonStatus: Decodable, Sendable {
    public var pid: Int
    public var uptimeSeconds: Double
    /// Drawn at the daemon's start; 16 hexadecimal digits.
    public var epoch: String
    /// Counts the reloads.
    public var rulesGeneration: UInt32
    public var rules: Int
    public var controlSocket: String
    /// Now.
    public var connections, channels, endpoints: Int
    /// Closed channels and endpoints whose memory waits for the engines to let go.
    public var departing: Int
    /// Since the start.
    public var requests, refusedRequests, refusedConnections, disconnectedLiars, damagedChannels: UInt64
    /// Since the start: what lay in the rings of sockets that went back to the kernel, and was never received (they were closed
    /// before anybody did, or there was no room to keep it).
    public var abandonedDatagrams: UInt64

    enum CodingKeys: String, CodingKey {
      case pid, uptimeSeconds = "uptime_seconds", epoch, rulesGeneration = "rules_generation", rules,
        controlSocket = "control_socket", connections, channels, endpoints, departing, requests,
        refusedRequests = "refused_requests", refusedConnections = "refused_connections",
        disconnectedLiars = "disconnected_liars", damagedChannels = "damaged_channels",
        abandonedDatagrams = "abandoned_datagrams"
    }
  }

  public struct EngineStatus: Decodable, Sendable {
    public var index: Int
    /// nil: not pinned.
    public var cpu: Int?
    public var polling: String
    public var sleeping: Bool
    /// For how long it has made no round, though it was asked to; 0: it makes them.
    public var stalledSeconds = 0
    public var interfaces: [String]
    /// By reason; reasons that never occurred are left out.
    public var drops: [String: UInt64]
    /// What the engine counts, `EngineCounter` by name: `rxPackets`. In JSON, keys of the engine itself: `rx_packets`.
    public var counters: [String: UInt64]
    /// What the transport machnet counts, `TransportCounter` by name: `messages_sent`; what never occurred is left out.
    public var transport: [String: UInt64]
    /// Of the transport machnet.
    public var sessions: [SessionStatus]
  }

  /// A session of the transport machnet with an engine of another host.
  public struct SessionStatus: Decodable, Sendable {
    public var local, remote: String
    /// Number of the engine there.
    public var remoteEngine: Int
    /// open or opening
    public var state: String
    /// From the first SYN on; nil where the peer opened it.
    public var setUpMicroseconds: Double?
    /// Round trips; 0: not measured yet.
    public var smoothedRttMicroseconds, minimumRttMicroseconds: Double
    /// Packets.
    public var congestionWindow: Double
    public var inFlight: Int
    public var packetsSent, packetsReceived, retransmissions: UInt64

    enum CodingKeys: String, CodingKey {
      case local, remote, remoteEngine = "remote_engine", state, setUpMicroseconds = "set_up_microseconds",
        smoothedRttMicroseconds = "smoothed_rtt_microseconds", minimumRttMicroseconds = "minimum_rtt_microseconds",
        congestionWindow = "congestion_window", inFlight = "in_flight", packetsSent = "packets_sent",
        packetsReceived = "packets_received", retransmissions
    }
  }

  public struct InterfaceStatus: Decodable, Sendable {
    public var name: String
    /// `ADDR/LEN`
    public var address: String
    public var gateway: String?
    public var device: String
    /// Bytes of the IP layer.
    public var mtu: Int?
    public var mac: String?
    public var neighbours: [NeighbourStatus]

    enum CodingKeys: String, CodingKey {
      case name, address, gateway, device, mtu, mac, neighbours
    }
  }

  public struct NeighbourStatus: Decodable, Sendable {
    public var address: String
    public var mac: String?
    /// incomplete, reachable or stale
    public var state: String

    enum CodingKeys: String, CodingKey {
      case address, mac, state
    }
  }

  public struct ProcessStatus: Decodable, Sendable {
    /// 0: of a PID namespace that the daemon does not see.
    public var pid: Int
    public var uid: Int
    public var program: String
    public var channels, sockets: Int
    /// How long it has been attached.
    public var connectedSeconds: Double
    /// Requests that were refused, the latest last; at most 16 different ones are remembered.
    public var refusals: [RefusalStatus]

    enum CodingKeys: String, CodingKey {
      case pid, uid, program, channels, sockets, connectedSeconds = "connected_seconds", refusals
    }
  }

  public struct RefusalStatus: Decodable, Sendable {
    /// open, connect or channel
    public var request: String
    /// An errno value.
    public var error: Int
    public var reason: String
    /// Of the socket, as /proc/PID/fd names it; nil: it was not about one.
    public var inode: UInt64?
    public var count: UInt64
    /// Since the latest.
    public var secondsAgo: Double

    enum CodingKeys: String, CodingKey {
      case request, error, reason, inode, count, secondsAgo = "seconds_ago"
    }
  }

  public struct SocketStatus: Decodable, Sendable {
    public var program: String
    public var pid: Int
    /// `ADDR:PORT`, ADDR `*` for the wildcard.
    public var local: String
    /// nil: not connected.
    public var peer: String?
    /// 0: the daemon's network namespace.
    public var netns: Int
    /// machnet or kernel: what the rules say of its flow, or, unconnected, whether they may lead one to Machnet.
    public var verdict: String
    /// Of the config file; nil: no rule, the kernel.
    public var ruleLine: Int?
    public var transport: String?
    public var homeEngine: Int
    /// As /proc/PID/fd names the socket: `socket:[INODE]`.
    public var inode: UInt64
    /// How long it has been on Machnet.
    public var sinceSeconds: Double
    public var channel, endpoint: Int
    public var engine: Traffic
    public var kernel: Traffic
    public var drops: [String: UInt64]
    /// Times that a thread of the program slept in a wait and was woken.
    public var wakeups: UInt64

    enum CodingKeys: String, CodingKey {
      case program, pid, local, peer, netns, verdict, ruleLine = "rule_line", transport, homeEngine = "home_engine", inode,
        sinceSeconds = "since_seconds", channel, endpoint, engine, kernel, drops, wakeups
    }
  }

  /// Both directions, as the program sees them.
  public struct Traffic: Codable, Sendable {
    public var rx = Amount()
    public var tx = Amount()

    enum CodingKeys: String, CodingKey {
      case rx, tx
    }
  }

  public struct Amount: Codable, Sendable {
    public var datagrams: UInt64 = 0
    /// Of payload.
    public var bytes: UInt64 = 0

    enum CodingKeys: String, CodingKey {
      case datagrams, bytes
    }

    public init(datagrams: UInt64 = 0, bytes: UInt64 = 0) {
      self.datagrams = datagrams
      self.bytes = bytes
    }
  }

  public init(json: String) throws {
    self = try JSONDecoder().decode(StatusReport.self, from: Data(json.utf8))
  }

  public init(
    daemon: DaemonStatus, engines: [EngineStatus], interfaces: [InterfaceStatus], processes: [ProcessStatus],
    sockets: [SocketStatus], unclaimed: [UnclaimedStatus]? = nil
  ) {
    self.daemon = daemon
    self.engines = engines
    self.interfaces = interfaces
    self.processes = processes
    self.sockets = sockets
    self.unclaimed = unclaimed
  }
}

extension StatusReport.EngineStatus {
  struct Key: CodingKey, Hashable {
    let stringValue: String
    var intValue: Int? { nil }
    init(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }

    static let index = Key(stringValue: "index")
    static let cpu = Key(stringValue: "cpu")
    static let polling = Key(stringValue: "polling")
    static let sleeping = Key(stringValue: "sleeping")
    static let stalledSeconds = Key(stringValue: "stalled_seconds")
    static let interfaces = Key(stringValue: "interfaces")
    static let drops = Key(stringValue: "drops")
    static let transport = Key(stringValue: "transport")
    static let sessions = Key(stringValue: "sessions")
    static let own: Set<Key> = [index, cpu, polling, sleeping, stalledSeconds, interfaces, drops, transport, sessions]
  }

  public init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: Key.self)
    index = try container.decode(Int.self, forKey: .index)
    cpu = try container.decodeIfPresent(Int.self, forKey: .cpu)
    polling = try container.decode(String.self, forKey: .polling)
    sleeping = try container.decode(Bool.self, forKey: .sleeping)
    stalledSeconds = try container.decodeIfPresent(Int.self, forKey: .stalledSeconds) ?? 0
    interfaces = try container.decode([String].self, forKey: .interfaces)
    drops = try container.decode([String: UInt64].self, forKey: .drops)
    transport = try container.decodeIfPresent([String: UInt64].self, forKey: .transport) ?? [:]
    sessions = try container.decodeIfPresent([StatusReport.SessionStatus].self, forKey: .sessions) ?? []
    counters = [:]
    for key in container.allKeys where !Key.own.contains(key) {
      counters[camelCase(key.stringValue)] = try container.decode(UInt64.self, forKey: key)
    }
  }
}

/// `rx_packets` as `rxPackets`.
private func camelCase(_ name: String) -> String {
  let words = name.split(separator: "_")
  return words.dropFirst().reduce(into: String(words.first ?? "")) { text, word in
    text += word.prefix(1).uppercased() + word.dropFirst()
  }
}

/// `rxPackets` as `rx_packets`.
func snakeCase(_ name: String) -> String {
  name.reduce(into: "") { text, letter in
    if letter.isUppercase { text += "_" }
    text += letter.lowercased()
  }
}
