import CLinux
import CMachnetABI
import Glibc
import Logging
import MachnetChannel
import MachnetEngine

extension ControlServer {
  /// Who asked for the status: a connection, and the request's number.
  struct StatusRequest {
    let connection: UInt64
    let sequence: UInt32
  }

  /// Takes down who wants a status; the answer comes when it is written.
  ///
  /// - Throws: EBUSY where the last one of this connection is not answered yet.
  func requestStatus(_ request: mn_request, _ name: UInt64) throws(Refusal) {
    guard !(statusWaiters + (statusReaders ?? [])).contains(where: { $0.connection == name }) else { throw Refusal(EBUSY) }
    statusWaiters.append(StatusRequest(connection: name, sequence: request.sequence))
    startStatus()
  }

  private func startStatus() {
    guard statusReaders == nil, !statusWaiters.isEmpty else { return }
    statusReaders = statusWaiters
    statusWaiters = []
    statusWriter.start(statusReport())
  }

  /// Answers everybody who waited for the report that is written now.
  func finishStatus() {
    guard let outcome = statusWriter.take(), let readers = statusReaders else { return }
    statusReaders = nil
    for reader in readers {
      guard let connection = connections[reader.connection] else { continue }
      var reply = mn_reply()
      reply.magic = MN_MAGIC
      reply.version = UInt16(MN_ABI_VERSION)
      reply.kind = UInt16(MN_REQUEST_STATUS)
      reply.sequence = reader.sequence
      var descriptors: [Descriptor] = []
      switch outcome {
      case .success((let memory, let size)):
        reply.size = UInt64(size)
        descriptors = [memory]
      case .failure(let error):
        log.warning("no status: \(error)")
        reply.status = ENOMEM
      }
      if !send(&reply, descriptors, to: connection) { disconnect(reader.connection) }
    }
    startStatus()
  }

  func statusReport() -> StatusReport {
    StatusReport(
      daemon: daemonStatus, engines: engines.map(status(of:)), interfaces: config.interfaces.map(status(of:)),
      processes: connections.sorted { $0.key < $1.key }.map(\.value).filter { !$0.program.isEmpty }.map(status(of:)),
      sockets: sockets,
      unclaimed: unclaimed.entries.values.map {
        StatusReport.UnclaimedStatus(
          inode: $0.inode, program: $0.program, pid: Int($0.pid), datagrams: $0.datagrams.count, sinceSeconds: seconds(since: $0.since))
      }.sorted { $0.inode < $1.inode })
  }

  private var daemonStatus: StatusReport.DaemonStatus {
    StatusReport.DaemonStatus(
      pid: Int(getpid()), uptimeSeconds: Double(mn_linux_monotonic() - started) / 1e9,
      epoch: String(repeating: "0", count: directory.epoch.leadingZeroBitCount / 4) + String(directory.epoch, radix: 16),
      rulesGeneration: directory.directory.rulesGeneration, rules: config.flows.count,
      controlSocket: config.control.socket, connections: connections.count, channels: channels.count,
      endpoints: endpointCount, departing: departing.count, requests: counters.requests, refusedRequests: counters.refusedRequests,
      refusedConnections: counters.refusedConnections, disconnectedLiars: counters.lies,
      damagedChannels: counters.damagedChannels, abandonedDatagrams: counters.abandonedDatagrams)
  }

  private func status(of engine: EngineControl) -> StatusReport.EngineStatus {
    let index = Int(engine.options.index)
    let counters = engine.counters()
    let values = EngineCounter.allCases.map { ("\($0)", counters[$0]) }
    return StatusReport.EngineStatus(
      index: index, cpu: config.engine.cpus.isEmpty ? nil : config.engine.cpus[index],
      polling: engine.options.polling.rawValue,
      sleeping: unsafe mn_load_relaxed_u32(directory.directory.engineWord(engine.options.index)) != 0,
      stalledSeconds: pulses[index].stalledSeconds,
      interfaces: engine.options.interfaces.map(\.name), drops: named(counters.drops),
      counters: Dictionary(uniqueKeysWithValues: values),
      transport: Dictionary(
        uniqueKeysWithValues: engine.transportCounters().filter { $0.count != 0 }.map { (snakeCase("\($0.counter)"), $0.count) }),
      sessions: engine.sessions().map(status(of:)))
  }

  private func status(of session: MachnetEngine.SessionStatus) -> StatusReport.SessionStatus {
    StatusReport.SessionStatus(
      local: "\(IPv4Address(session.localAddress))", remote: "\(IPv4Address(session.remoteAddress))",
      remoteEngine: Int(session.remoteEngine), state: session.isOpen ? "open" : "opening",
      setUpMicroseconds: session.setUpTime == 0 ? nil : Double(session.setUpTime) / 1000,
      smoothedRttMicroseconds: Double(session.smoothedRTT) / 1000,
      minimumRttMicroseconds: Double(session.minimumRTT) / 1000, congestionWindow: session.congestionWindow,
      inFlight: session.inFlight, packetsSent: session.packetsSent, packetsReceived: session.packetsReceived,
      retransmissions: session.retransmissions)
  }

  private func status(of interface: Config.Interface) -> StatusReport.InterfaceStatus {
    var status = StatusReport.InterfaceStatus(
      name: interface.name, address: "\(interface.prefix)", gateway: interface.gateway?.description,
      device: "\(interface.device)", neighbours: [])
    var seen: Set<UInt32> = []
    for engine in engines {
      for (port, options) in engine.options.interfaces.enumerated() where options.name == interface.name {
        status.mtu = options.mtu
        status.mac = macText(options.mac)
        for neighbour in engine.neighbours(port: port) where seen.insert(neighbour.address).inserted {
          status.neighbours.append(
            StatusReport.NeighbourStatus(
              address: "\(IPv4Address(neighbour.address))",
              mac: neighbour.state == .incomplete ? nil : macText(neighbour.mac), state: "\(neighbour.state)"))
        }
      }
    }
    return status
  }

  private func status(of connection: Connection) -> StatusReport.ProcessStatus {
    StatusReport.ProcessStatus(
      pid: Int(connection.pid), uid: Int(connection.uid), program: connection.program,
      channels: connection.channels.count,
      sockets: connection.channels.reduce(0) { count, channel in
        count + (channels[channel]?.endpoints.count { $0 != nil } ?? 0)
      }, connectedSeconds: seconds(since: connection.accepted),
      refusals: connection.refusals.map {
        StatusReport.RefusalStatus(
          request: $0.request, error: Int($0.code), reason: $0.reason, inode: $0.inode == 0 ? nil : $0.inode, count: $0.count,
          secondsAgo: seconds(since: $0.latest))
      })
  }

  private var sockets: [StatusReport.SocketStatus] {
    let rules = directory.directory.rules(generation: directory.directory.rulesGeneration)
    return endpointsByCookie.values
      .sorted { ($0.reference.channel, $0.reference.index) < ($1.reference.channel, $1.reference.index) }
      .compactMap { endpoint in
        guard let channel = channels[endpoint.reference.channel] else { return nil }
        return status(of: endpoint, stated: channel.stated(endpoint.reference.index), rule: rule(of: endpoint, rules))
      }
  }

  private func status(
    of endpoint: Endpoint, stated: mn_endpoint, rule: mn_rule?
  ) -> StatusReport.SocketStatus {
    var traffic = StatusReport.Traffic()
    var drops: [String: UInt64] = [:]
    for engine in engines {
      guard let counters = engine.counters(of: endpoint.reference) else { continue }
      traffic.rx.datagrams += counters.rxDatagrams
      traffic.rx.bytes += counters.rxBytes
      traffic.tx.datagrams += counters.txDatagrams
      traffic.tx.bytes += counters.txBytes
      drops.merge(named(counters.drops), uniquingKeysWith: +)
    }
    let isMachnet = rule.map { Int($0.path) == MN_PATH_MACHNET } ?? false
    return StatusReport.SocketStatus(
      program: endpoint.program, pid: Int(endpoint.pid),
      local: "\(endpoint.address == 0 ? "*" : "\(IPv4Address(endpoint.address))"):\(endpoint.port)",
      peer: endpoint.peer.map { "\(IPv4Address($0.address)):\($0.port)" }, netns: Int(endpoint.netns),
      verdict: isMachnet ? "machnet" : "kernel", ruleLine: rule.map { Int($0.line) },
      transport: isMachnet ? (rule.map { Int($0.transport) } == MN_TRANSPORT_UDP ? "udp" : "machnet") : nil,
      homeEngine: Int(endpoint.homeEngine), inode: endpoint.inode, sinceSeconds: seconds(since: endpoint.opened), channel: Int(endpoint.reference.channel),
      endpoint: Int(endpoint.reference.index), engine: traffic,
      kernel: StatusReport.Traffic(
        rx: StatusReport.Amount(datagrams: stated.kernel_rx_datagrams, bytes: stated.kernel_rx_bytes),
        tx: StatusReport.Amount(datagrams: stated.kernel_tx_datagrams, bytes: stated.kernel_tx_bytes)),
      drops: drops, wakeups: stated.app_wakeups)
  }

  /// The rule that a connected socket's flow hits; of an unconnected one, the first that may lead a flow to Machnet.
  private func rule(of endpoint: Endpoint, _ rules: RuleSet) -> mn_rule? {
    let mask = unsafe endpoint.program.withCString { name in unsafe rules.mask(programs: name, name) }
    if let peer = endpoint.peer {
      let hit = rules.first(
        program: mask, localAddress: endpoint.address, localPort: endpoint.port, remoteAddress: peer.address,
        remotePort: peer.port)
      return hit.map(rules.rule)
    }
    for index in 0..<rules.count where mask.contains(index) {
      let rule = rules.rule(index)
      if Int(rule.path) == MN_PATH_MACHNET,
        endpoint.address == 0 || endpoint.address & rule.local_mask == rule.local_network,
        rule.local_port_low...rule.local_port_high ~= endpoint.port
      {
        return rule
      }
    }
    return nil
  }
}

private func seconds(since start: UInt64) -> Double { Double(mn_linux_monotonic() - start) / 1e9 }

private func named(_ drops: [(reason: DropReason, count: UInt64)]) -> [String: UInt64] {
  Dictionary(uniqueKeysWithValues: drops.map { (snakeCase("\($0.reason)"), $0.count) })
}

/// The 48 low bits as six hexadecimal octets.
private func macText(_ mac: UInt64) -> String {
  (0..<6).map { octet in
    let value = mac >> UInt64(40 - 8 * octet) & 0xff
    return (value < 16 ? "0" : "") + String(value, radix: 16)
  }.joined(separator: ":")
}

extension Config.Interface.Device: CustomStringConvertible {
  public var description: String {
    switch self {
    case .pci(let address): address
    case .vmbus(let uuid, let virtualFunction): "vmbus \(uuid)" + (virtualFunction.map { ", vf \($0)" } ?? "")
    case .vdev(let text): text
    }
  }
}
