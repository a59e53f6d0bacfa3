import CLinux
import CMachnetABI
import Glibc
import Logging
import MachnetChannel
import MachnetEngine

extension ControlServer {
  /// Carries out a request; returns the descriptors of the reply.
  func answer(
    _ request: mn_request, _ message: Message, _ connection: Connection, _ name: UInt64, _ reply: inout mn_reply
  ) throws(Refusal) -> [Descriptor] {
    switch Int(request.kind) {
    case MN_REQUEST_HELLO:
      connection.program = try programName(request)
      log.debug("pid \(connection.pid) is \(connection.program)")
      return [directory.readOnly]
    case MN_REQUEST_CHANNEL:
      guard !isTooLate(request) else { throw Refusal(ETIMEDOUT) }
      let channel = try makeChannel(for: connection, name)
      reply.channel = channel.identifier
      reply.size = UInt64(channel.memory.size)
      return [channel.memory.descriptor] + channel.doorbells
    case MN_REQUEST_OPEN:
      guard !isTooLate(request) else { throw Refusal(ETIMEDOUT) }
      let channel = try channel(of: request, connection)
      return try open(request, message.descriptors[0], channel, connection, name, &reply)
    case MN_REQUEST_CONNECT:
      let endpoint = try endpoint(of: request, connection)
      try connect(request, message.descriptors[0], endpoint, &reply)
      return []
    case MN_REQUEST_CLOSE:
      guard request.flags & ~UInt32(MN_CLOSE_KEEPING | MN_CLOSE_LEAVING | MN_CLOSE_PASSING) == 0 else { throw .lie }
      try close(request, connection, name)
      return []
    case MN_REQUEST_STATUS:
      try requestStatus(request, name)
      return []
    case MN_REQUEST_RELOAD:
      return try reload(connection, &reply)
    case MN_REQUEST_CAPTURE:
      return try startCapture(request, connection, name, &reply)
    default:
      throw .lie
    }
  }

  /// Whether the client does not wait for the answer any more. (Where the clocks of two time namespaces differ, nothing can be said.)
  private func isTooLate(_ request: mn_request) -> Bool {
    let now = mn_linux_monotonic()
    return request.deadline != 0 && now >= request.deadline && now - request.deadline < 60_000_000_000
  }

  private func programName(_ request: mn_request) throws(Refusal) -> String {
    let bytes = unsafe withUnsafeBytes(of: request.program) { unsafe Array($0) }
    guard let end = bytes.firstIndex(of: 0) else { throw .lie }
    // It is printed on terminals: no controls, neither those beyond ASCII, nor what turns the direction of writing.
    var name = String.UnicodeScalarView()
    for scalar in String(decoding: bytes[..<end], as: UTF8.self).unicodeScalars {
      switch scalar.properties.generalCategory {
      case .control, .format, .lineSeparator, .paragraphSeparator, .unassigned: name.append("?")
      default: name.append(scalar)
      }
    }
    return String(name)
  }

  /// The channel that a request names, if the sender owns it or proves by the token that it maps it.
  private func channel(of request: mn_request, _ connection: Connection) throws(Refusal) -> Channel {
    guard let channel = channels[request.channel] else { throw Refusal(ENOENT) }
    guard connection.channels.contains(channel.identifier) || request.token == channel.token else {
      throw Refusal(EACCES)
    }
    return channel
  }

  /// - Parameter kept: whether one that has been closed, and kept, is meant as well.
  private func endpoint(of request: mn_request, _ connection: Connection, kept: Bool = false) throws(Refusal) -> Endpoint {
    let channel = try channel(of: request, connection)
    guard request.endpoint < UInt32(channel.endpoints.count) else { throw .lie }
    guard let endpoint = channel.endpoints[Int(request.endpoint)],
      endpointsByCookie[endpoint.cookie] === endpoint || kept && endpoint.isKept
    else { throw Refusal(ENOENT) }
    return endpoint
  }

  // MARK: Endpoints

  /// The engine that serves an endpoint's TX ring: one with a queue on the interface that its datagrams will leave by.
  private func homeEngine(_ index: UInt32, address: UInt32, peer: Peer?) -> UInt32 {
    let serving = engines.map { $0.options.interfaces.map(\.address) }
    var interface: UInt32? = serving.joined().contains(address) ? address : nil
    if interface == nil, let peer, let route = directory.directory.route(to: peer.address) {
      interface = directory.directory.interface(route).address
    }
    let able = HomeEngine.candidates(serving: serving, interface: interface)
    return UInt32(able[Int(index) % able.count])
  }

  private func open(
    _ request: mn_request, _ descriptor: Descriptor, _ channel: Channel, _ connection: Connection, _ name: UInt64,
    _ reply: inout mn_reply
  ) throws(Refusal) -> [Descriptor] {
    guard request.flags & ~UInt32(MN_OPEN_PEER | MN_OPEN_REUSEPORT | MN_OPEN_KNOWN) == 0 else { throw .lie }
    let shadow = try ShadowSocket(descriptor: descriptor.number)
    if let known = endpointsByCookie[shadow.cookie] {
      if known.reference.channel == channel.identifier {
        fill(&reply, known)
        return [known.event]
      }
      if mayJoin(known, connection) { return try join(known, connection, name, &reply) }
      withdraw(known, shadow, descriptor, connection)
      throw Refusal(EEXIST)
    }
    if let old = kept[shadow.cookie], old.isWithdrawn { throw Refusal(EEXIST) }
    finishDeparture(of: shadow.cookie)
    if let old = kept[shadow.cookie], old.keeper != name {
      if !old.isLeaving { return try receive(old, request, shadow, connection, name, &reply) }
      close(old, keeping: false)
    }
    if request.flags & UInt32(MN_OPEN_KNOWN) != 0 && unclaimed.entries[shadow.cookie] == nil { throw Refusal(ENOENT) }
    let peer = request.flags & UInt32(MN_OPEN_PEER) != 0 ? try statedPeer(request) : shadow.peer
    let address = try grantedAddress(shadow, peer: peer)
    try checkClaim(shadow, address)
    guard mayOpen(channel.uid) else { throw Refusal(ENFILE) }
    guard let index = channel.endpoints.firstIndex(where: { $0 == nil }).map(UInt32.init) else { throw Refusal(ENOSPC) }
    guard let event = try? Descriptor(mn_linux_eventfd(), "make an eventfd") else { throw Refusal(ENFILE) }
    guard let netnsIndex = netns.enter(shadow.netnsCookie) else { throw Refusal(ENFILE) }

    let endpoint = Endpoint(
      reference: EndpointReference(channel: channel.identifier, index: index), shadow: shadow, netns: netnsIndex,
      address: address, peer: peer, homeEngine: homeEngine(index, address: address, peer: peer), event: event,
      program: connection.program, pid: connection.pid, uid: channel.uid, opener: name)
    generation &+= 1
    channel.endpoints[Int(index)] = endpoint
    channel.prepare(index, generation: generation, homeEngine: endpoint.homeEngine)
    count(endpoint, 1)
    if let datagrams = unclaimed.take(cookie: endpoint.cookie) {
      counters.abandonedDatagrams += UInt64(channel.refill(index, datagrams))
    }
    // The engines know the endpoint before any sender can find it.
    let opened = order { (engine) throws(EngineControl.Refusal) in
      try engine.openEndpoint(endpoint.reference, endpoint.identity)
    }
    // Nobody reads yet what would arrive for a client that has given up.
    let isTooLate = isTooLate(request)
    guard opened, !isTooLate, directory.enterLocal(endpoint.key) else {
      netns.leave(shadow.netnsCookie)
      count(endpoint, -1)
      // (What was moved into its rings is kept again once the engines have let go.)
      depart(endpoint, of: channel)
      throw Refusal(!opened ? ENOBUFS : isTooLate ? ETIMEDOUT : ENFILE)
    }
    endpointsByCookie[endpoint.cookie] = endpoint
    channel.setState(index, .live)
    fill(&reply, endpoint)
    return [event]
  }

  /// Whether a user may have another endpoint: whatever one has, as many are left for the others. (Of root, and of who runs the
  /// daemon, nothing can be kept from others.)
  private func mayOpen(_ uid: UInt32) -> Bool {
    let left = config.channel.maximumEndpoints - endpointCount
    return left > 0 && (isTrusted(uid) || endpointsOfUser[uid] ?? 0 < max(1, left))
  }

  private func count(_ endpoint: Endpoint, _ change: Int) {
    endpointCount += change
    let ofUser = (endpointsOfUser[endpoint.uid] ?? 0) + change
    endpointsOfUser[endpoint.uid] = ofUser == 0 ? nil : ofUser
  }

  /// A socket that was passed to others is shown by one of them, who joins. Until all of them have done so, the kernel's queue is the
  /// only one that all see, and stays so where one never does (without the shim), or may not join. Then the endpoint is opened anew,
  /// in its old place.
  ///
  /// - Throws: EBUSY: its sender alone may use it.
  private func receive(
    _ endpoint: Endpoint, _ request: mn_request, _ shadow: ShadowSocket, _ connection: Connection, _ name: UInt64, _ reply: inout mn_reply
  ) throws(Refusal) -> [Descriptor] {
    guard endpoint.isLeft, endpoint.passes > 0, let channel = channels[endpoint.reference.channel], mayJoin(endpoint, connection)
    else { throw Refusal(EBUSY) }
    endpoint.receivers.insert(name)
    if endpoint.receivers.count >= endpoint.passes, shadow.localPort == endpoint.port { try resume(endpoint, request, shadow, channel) }
    return try join(endpoint, connection, name, &reply)
  }

  private func resume(_ endpoint: Endpoint, _ request: mn_request, _ shadow: ShadowSocket, _ channel: Channel) throws(Refusal) {
    let address = try grantedAddress(shadow, peer: shadow.peer)
    try checkClaim(shadow, address)
    guard mayOpen(channel.uid), let index = netns.enter(shadow.netnsCookie) else { throw Refusal(ENFILE) }
    count(endpoint, 1)
    endpoint.netns = index
    endpoint.address = address
    endpoint.peer = shadow.peer
    endpoint.isLeft = false
    let opened = order { (engine) throws(EngineControl.Refusal) in
      try engine.openEndpoint(endpoint.reference, endpoint.identity)
    }
    guard opened, !isTooLate(request), directory.enterLocal(endpoint.key) else {
      netns.leave(shadow.netnsCookie)
      count(endpoint, -1)
      // Those who have it read on, as before.
      depart(endpoint, of: channel)
      throw Refusal(EBUSY)
    }
    kept[endpoint.cookie] = nil
    endpoint.isKept = false
    endpoint.passes = 0
    endpoint.receivers = []
    endpoint.misses = 0
    endpointsByCookie[endpoint.cookie] = endpoint
    channel.setState(endpoint.reference.index, .live)
  }

  /// Whether others than `name` have joined an endpoint, and not let go.
  func isJoined(_ endpoint: Endpoint, except name: UInt64) -> Bool {
    connections.contains { $0.key != name && $0.value.joined[endpoint.cookie] != nil }
  }

  /// Who maps a channel sees all its rings, so it must be the same user; and thread ids must mean the same to both, because they
  /// are the owners of its locks.
  private func mayJoin(_ endpoint: Endpoint, _ connection: Connection) -> Bool {
    guard let channel = channels[endpoint.reference.channel], connection.uid == channel.uid, let namespace = channel.processNamespace
    else { return false }
    return namespace == processNamespace(connection.pid)
  }

  /// One who may not join has the socket. The kernel's queue is the only one that all can see, so the socket goes back to it, and
  /// those who use the endpoint find that in its state. An engine's address, or a peer behind an engine, no kernel can carry: then
  /// everything stays with those who have the endpoint.
  private func withdraw(_ endpoint: Endpoint, _ shadow: ShadowSocket, _ descriptor: Descriptor, _ connection: Connection) {
    guard !directory.directory.isEngineAddress(endpoint.address), endpoint.peer == nil || endpoint.peer == shadow.peer,
      let channel = channels[endpoint.reference.channel]
    else { return }
    counters.withdrawn += 1
    if isWorthALine(counters.withdrawn) {
      log.info(
        """
        port \(endpoint.port) of pid \(endpoint.pid) (\(endpoint.program)) goes back to the kernel: pid \(connection.pid) \
        (\(connection.program)), of another user or PID namespace, has its socket, too
        """)
    }
    connections[endpoint.opener]?.note(Refusal(EEXIST), MN_REQUEST_OPEN, descriptor)
    kept[endpoint.cookie] = endpoint
    endpoint.keeper = endpoint.opener
    endpoint.isLeaving = false
    endpoint.isWithdrawn = true
    endpoint.passes = 0
    close(endpoint, keeping: true)
    channel.setState(endpoint.reference.index, .leaving)
  }

  /// Gives another process a part in an endpoint, as a forked child has one: the rings stay where they are, and whoever comes
  /// first reads, as from the one queue that a kernel's socket has.
  private func join(
    _ endpoint: Endpoint, _ connection: Connection, _ name: UInt64, _ reply: inout mn_reply
  ) throws(Refusal) -> [Descriptor] {
    guard let channel = channels[endpoint.reference.channel] else { throw Refusal(ENOENT) }
    channel.holders.insert(name)
    connection.channels.insert(channel.identifier)
    connection.joined[endpoint.cookie, default: 0] += 1
    channel.addReference(endpoint.reference.index, 1)
    fill(&reply, endpoint)
    reply.size = UInt64(channel.memory.size)
    return [endpoint.event, channel.memory.descriptor] + channel.doorbells
  }

  private func close(_ request: mn_request, _ connection: Connection, _ name: UInt64) throws(Refusal) {
    let endpoint = try endpoint(of: request, connection, kept: true)
    let keeping = request.flags & UInt32(MN_CLOSE_KEEPING) != 0
    guard let channel = channels[endpoint.reference.channel] else { return }
    if let parts = connection.joined[endpoint.cookie], !keeping { connection.joined[endpoint.cookie] = parts == 1 ? nil : parts - 1 }
    // Somebody has joined since those who know of each other let go, or this is one of several who joined.
    if !endpoint.isKept && channel.references(endpoint.reference.index) > (keeping ? 1 : 0) { return }
    if keeping && !endpoint.isKept {
      kept[endpoint.cookie] = endpoint
      endpoint.keeper = name
      endpoint.isLeaving = request.flags & UInt32(MN_CLOSE_LEAVING) != 0
      endpoint.passes = 0
      endpoint.receivers = []
    }
    // Others read on.
    if endpoint.isWithdrawn && channel.references(endpoint.reference.index) > 0 { return }
    if endpoint.isKept && !keeping && endpoint.passes > 0 {
      // Somebody who has received it reads on, or its sender, which has not ended.
      let isHeld = channel.references(endpoint.reference.index) > 0 && connections[endpoint.keeper] != nil
      if isHeld || isJoined(endpoint, except: name) { return }
    }
    if endpoint.isKept || keeping, request.flags & UInt32(MN_CLOSE_PASSING) != 0 { endpoint.passes += 1 }
    close(endpoint, keeping: keeping)
  }

  /// The process behind a connection has gone, and others hold its channel, too.
  func leave(_ channel: Channel, _ connection: Connection, _ name: UInt64) {
    channel.holders.remove(name)
    let living = livingCookies()
    for case let endpoint? in channel.endpoints {
      let index = endpoint.reference.index
      if let parts = connection.joined[endpoint.cookie] { channel.addReference(index, -parts) }
      if endpoint.isKept {
        endpoint.receivers.remove(name)
        if endpoint.opener == name && !isJoined(endpoint, except: name) { close(endpoint, keeping: false) }
      } else if endpointsByCookie[endpoint.cookie] === endpoint {
        let isGone = living.map { netns.isOwn(endpoint.netnsCookie) && !$0.contains(endpoint.cookie) } ?? false
        if isGone || channel.references(index) == 0 { close(endpoint, keeping: true) }
      }
    }
  }

  private func connect(
    _ request: mn_request, _ descriptor: Descriptor, _ endpoint: Endpoint, _ reply: inout mn_reply
  ) throws(Refusal) {
    guard request.flags & ~UInt32(MN_OPEN_PEER) == 0 else { throw .lie }
    let shadow = try ShadowSocket(descriptor: descriptor.number)
    guard shadow.cookie == endpoint.cookie else { throw Refusal(EACCES) }
    // A socket that the kernel bound itself loses its port when it is disconnected; then it is another endpoint.
    guard shadow.localPort == endpoint.port else { throw Refusal(EINVAL) }
    let peer = request.flags & UInt32(MN_OPEN_PEER) != 0 ? try statedPeer(request) : shadow.peer
    let address = try grantedAddress(shadow, peer: peer)
    if address != endpoint.address { try checkClaim(shadow, address) }
    let old = endpoint.key
    guard directory.enterLocal(mn_local_key(endpoint.netns, address, endpoint.port)) else { throw Refusal(ENFILE) }
    endpoint.address = address
    endpoint.peer = peer
    directory.leaveLocal(old)
    let connected = order { (engine) throws(EngineControl.Refusal) in
      try engine.connectEndpoint(
        endpoint.reference, peerAddress: peer?.address ?? 0, peerPort: peer?.port ?? 0, localAddress: address)
    }
    guard connected else { throw Refusal(ENOBUFS) }
    fill(&reply, endpoint)
  }

  func close(_ endpoint: Endpoint, keeping: Bool) {
    guard let channel = channels[endpoint.reference.channel] else { return }
    if endpoint.isKept {
      guard !keeping else { return }
      endpoint.isKept = false
      // (Else the engines have not all let go of it yet.)
      if endpoint.isLeft { free(endpoint, of: channel) }
      return
    }
    channel.setState(endpoint.reference.index, .closed)
    endpoint.isKept = keeping
    forget(endpoint)
    depart(endpoint, of: channel)
  }

  /// Closes endpoints whose sockets are no more, and nobody has said so: a forked child that held the last descriptor has ended,
  /// or a raw system call has closed it. Their ports may be other programs' by now, whose datagrams would go to rings that
  /// nobody reads. The blocks stay their processes', which may not know yet.
  ///
  /// Each second for a few sockets, each minute for thousands; three looks in a row must agree. (Sockets of other network
  /// namespaces are not seen from here.)
  func closeOrphans() {
    ticksToOrphans -= 1
    guard ticksToOrphans <= 0, endpointCount > 0 else { return }
    ticksToOrphans = min(60, 1 + endpointCount / 64)
    guard let living = livingCookies() else { return }
    for endpoint in Array(endpointsByCookie.values) where netns.isOwn(endpoint.netnsCookie) {
      endpoint.misses = living.contains(endpoint.cookie) ? 0 : endpoint.misses + 1
      guard endpoint.misses == 3 else { continue }
      log.debug("the socket of pid \(endpoint.pid) at port \(endpoint.port) is gone")
      close(endpoint, keeping: true)
    }
  }

  /// Takes an endpoint out of everybody's sight. Its block is free once the engines have let go.
  func forget(_ endpoint: Endpoint) {
    directory.leaveLocal(endpoint.key)
    netns.leave(endpoint.netnsCookie)
    endpointsByCookie[endpoint.cookie] = nil
    count(endpoint, -1)
  }

  private func fill(_ reply: inout mn_reply, _ endpoint: Endpoint) {
    reply.channel = endpoint.reference.channel
    reply.endpoint = endpoint.reference.index
    reply.engine = endpoint.homeEngine
    reply.netns = UInt32(endpoint.netns)
    reply.local = mapped(endpoint.address)
    reply.local_port = endpoint.port
  }

  // MARK: Policy

  /// The peer that a client states because its kernel has no route to it. Port 0: none.
  private func statedPeer(_ request: mn_request) throws(Refusal) -> Peer? {
    guard let address = ipv4(request.peer.words) else { throw Refusal(EAFNOSUPPORT) }
    return request.peer_port == 0 ? nil : Peer(address: address, port: request.peer_port)
  }

  /// The local address that an endpoint gets: the shadow's own, with one exception. A connected socket whose peer is
  /// reached through an interface of ours has been given one of the host's addresses by a kernel that knows nothing of
  /// that interface; it gets the interface's, as from a kernel that does.
  ///
  /// - Throws: EACCES (an engine's address, another network namespace), EADDRNOTAVAIL (nobody's address here).
  private func grantedAddress(_ shadow: ShadowSocket, peer: Peer?) throws(Refusal) -> UInt32 {
    let table = directory.directory
    let own = netns.isOwn(shadow.netnsCookie)
    let address = shadow.localAddress
    if table.isEngineAddress(address) {
      // Sessions of the transport machnet have these ports to themselves.
      guard own, !config.transport.ports.contains(shadow.localPort) else { throw Refusal(EACCES) }
      return address
    }
    if own, let peer, address >> 24 != 127, !table.isHostAddress(peer.address, netns: 0), let interface = table.route(to: peer.address),
      address == 0 || isHostAddress(address)
    {
      return table.interface(interface).address
    }
    guard address == 0 || address >> 24 == 127 || own && isHostAddress(address) else { throw Refusal(EADDRNOTAVAIL) }
    return address
  }

  /// Whether the daemon's namespace has the address. A new one is looked for before the answer is no.
  private func isHostAddress(_ address: UInt32) -> Bool {
    if directory.directory.isHostAddress(address, netns: 0) { return true }
    directory.refreshHostAddresses()
    return directory.directory.isHostAddress(address, netns: 0)
  }

  /// An engine-owned address and port belongs to one socket, or to sockets that all agreed to share it, as in one
  /// kernel. For the host's own addresses each namespace's kernel has already decided.
  private func checkClaim(_ shadow: ShadowSocket, _ address: UInt32) throws(Refusal) {
    guard directory.directory.isEngineAddress(address), directory.isLocal(mn_local_key(0, address, shadow.localPort))
    else { return }
    for other in endpointsByCookie.values
    where other.address == address && other.port == shadow.localPort && other.cookie != shadow.cookie {
      guard other.reusesPort && shadow.reusesPort || other.reusesAddress && shadow.reusesAddress else {
        throw Refusal(EADDRINUSE)
      }
    }
  }
}

// MARK: - Reload

extension ControlServer {
  /// Reads the config again and puts its rules in force. Other changes wait for a restart, and are named.
  ///
  /// - Returns: what whoever asked is to know: nothing, as a rule.
  /// - Throws: EINVAL, with what is wrong; then everything stays as it was.
  func reload() throws(Refusal) -> String? {
    let fresh: Config
    do {
      fresh = try reread()
    } catch {
      log.error("the config is not reloaded, the old rules stay:\n\(error)")
      throw Refusal(EINVAL, message: "\(error)")
    }
    var comparable = fresh
    comparable.flows = config.flows
    let note = comparable == config ? nil : "only flows are reloaded; restart machnetd for changes in other sections"
    if let note { log.warning("\(note)") }
    config.flows = fresh.flows
    directory.install(rules: fresh.rules)
    log.info("flow rules in force: \(fresh.flows.count)")
    return note
  }

  private func reload(_ connection: Connection, _ reply: inout mn_reply) throws(Refusal) -> [Descriptor] {
    guard connection.isOperator else { throw Refusal(EPERM) }
    guard let note = try reload(), let memory = try? textMemory(note) else { return [] }
    reply.size = UInt64(note.utf8.count)
    return [memory]
  }
}
