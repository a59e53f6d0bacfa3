/// What has changed between two reports of one daemon, per second. JSON with snake_case keys.
public struct StatusRates: Codable, Sendable {
  /// Between the two reports, by the daemon's clock.
  public var seconds: Double
  public var engines: [Engine]
  public var sessions: [Session]
  public var sockets: [Socket]

  public struct Engine: Codable, Sendable {
    public var index: Int
    public var cpu: Int?
    /// Share of the rounds that found work, while awake; 0...1.
    public var load: Double
    /// Share of the time; 0...1.
    public var asleep: Double
    public var rxPackets, txPackets, localDatagrams, drops, wakeups: Double
  }

  /// A session of the transport machnet: how it stands, and packets per second.
  public struct Session: Codable, Sendable {
    /// The engine here and the one there.
    public var engine, remoteEngine: Int
    public var local, remote: String
    /// open or opening
    public var state: String
    /// 0: not measured yet.
    public var smoothedRttMicroseconds: Double
    /// Packets.
    public var congestionWindow: Double
    public var inFlight: Int
    public var rx, tx, retransmissions: Double
  }

  public struct Socket: Codable, Sendable {
    public var program: String
    public var pid: Int
    public var local: String
    public var peer: String?
    public var ruleLine: Int?
    public var rx, tx: Double
    public var rxBytes, txBytes: Double
    public var kernel, drops, wakeups: Double
  }

  /// - Parameter old: of the same daemon, or of nobody: then the rates are since the daemon's (or the socket's) start.
  public init(from old: StatusReport?, to new: StatusReport) {
    let isSame = old.map { $0.daemon.epoch == new.daemon.epoch && $0.daemon.uptimeSeconds < new.daemon.uptimeSeconds } ?? false
    let before = isSame ? old : nil
    seconds = max(1e-6, new.daemon.uptimeSeconds - (before?.daemon.uptimeSeconds ?? 0))
    let period = seconds
    func rate(_ new: UInt64, _ old: UInt64?) -> Double { Double(new - min(new, old ?? 0)) / period }
    func sum(_ counts: [String: UInt64]?) -> UInt64 { counts?.values.reduce(0, &+) ?? 0 }

    engines = new.engines.map { engine in
      let last = before?.engines.first { $0.index == engine.index }
      func perSecond(_ name: String) -> Double { rate(engine.counters[name] ?? 0, last?.counters[name]) }
      let rounds = perSecond("iterations")
      // A sleep is counted when it is over: an engine that did nothing at all sleeps still.
      let asleep = rounds == 0 && engine.sleeping ? 1 : min(1, perSecond("sleepNanoseconds") / 1e9)
      return Engine(
        index: engine.index, cpu: engine.cpu, load: rounds == 0 ? 0 : min(1, perSecond("busyIterations") / rounds),
        asleep: asleep, rxPackets: perSecond("rxPackets"), txPackets: perSecond("txPackets"),
        localDatagrams: perSecond("localDatagrams"), drops: rate(sum(engine.drops), sum(last?.drops)),
        wakeups: perSecond("wakeups"))
    }
    sessions = new.engines.flatMap { engine in
      let last = before?.engines.first { $0.index == engine.index }?.sessions ?? []
      return engine.sessions.map { session in
        let last = last.first {
          ($0.local, $0.remote, $0.remoteEngine) == (session.local, session.remote, session.remoteEngine)
            // A session that was begun anew counts from nothing.
            && $0.packetsSent <= session.packetsSent && $0.packetsReceived <= session.packetsReceived
        }
        return Session(
          engine: engine.index, remoteEngine: session.remoteEngine, local: session.local, remote: session.remote, state: session.state,
          smoothedRttMicroseconds: session.smoothedRttMicroseconds, congestionWindow: session.congestionWindow,
          inFlight: session.inFlight, rx: rate(session.packetsReceived, last?.packetsReceived),
          tx: rate(session.packetsSent, last?.packetsSent),
          retransmissions: rate(session.retransmissions, last?.retransmissions))
      }
    }
    // A socket is its inode: blocks are used again.
    let known = Dictionary((before?.sockets ?? []).map { ($0.inode, $0) }, uniquingKeysWith: { first, _ in first })
    sockets = new.sockets.map { socket in
      let last = known[socket.inode].flatMap { $0.sinceSeconds <= socket.sinceSeconds ? $0 : nil }
      let kernel = socket.kernel.rx.datagrams &+ socket.kernel.tx.datagrams
      return Socket(
        program: socket.program, pid: socket.pid, local: socket.local, peer: socket.peer, ruleLine: socket.ruleLine,
        rx: rate(socket.engine.rx.datagrams, last?.engine.rx.datagrams),
        tx: rate(socket.engine.tx.datagrams, last?.engine.tx.datagrams),
        rxBytes: rate(socket.engine.rx.bytes, last?.engine.rx.bytes),
        txBytes: rate(socket.engine.tx.bytes, last?.engine.tx.bytes),
        kernel: rate(kernel, last.map { $0.kernel.rx.datagrams &+ $0.kernel.tx.datagrams }),
        drops: rate(sum(socket.drops), sum(last?.drops)), wakeups: rate(socket.wakeups, last?.wakeups))
    }
  }
}
