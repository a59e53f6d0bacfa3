import MachnetTransport
import MachnetWire
import Testing

/// One host with sessions to many others, of which some send by the book and some by hand.
@safe
private final class Crowd {
  final class Peer {
    var transport: Transport
    let address: UInt32
    /// The tag that the server knows it by, and the number of the next packet made by hand.
    var tag: UInt64 = 0
    var number: UInt32 = 0
    /// Messages that it has begun, and how many of their pieces it has sent.
    var begun: [(message: UInt32, total: Int, pieces: Int)] = []

    init(_ transport: consuming Transport, _ address: UInt32) {
      self.transport = transport
      self.address = address
    }
  }

  static let address: UInt32 = 0x0A00_0001
  static let piece = 1420
  var server: Transport
  var peers: [Peer] = []
  var now: UInt64 = 1_000_000
  /// Lengths of what the server has received from a host.
  var received: [UInt32: [Int]] = [:]
  var closed: [Transport.CloseReason] = []
  private let memory = UnsafeMutableRawPointer.allocate(byteCount: 2048, alignment: 64)
  private let ports = PortPair(source: 62_000, destination: 62_000)

  init() {
    var options = TransportOptions(engine: 0, engines: 1, epoch: 1, seed: (runSeed, 1))
    options.sessions = 256
    options.buffers = 512
    options.assemblies = 32
    server = Transport(options)
  }

  deinit { unsafe memory.deallocate() }

  private var room: Bytes { unsafe Bytes(unsafe: memory, count: 2048) }

  /// Another host, whose session is open.
  func join() -> Peer {
    let number = UInt64(peers.count + 2)
    var options = TransportOptions(engine: 0, engines: 1, epoch: number, seed: (runSeed, number))
    options.sessions = 2
    options.buffers = 512
    options.assemblies = 4
    options.largeAssemblies = 1
    let peer = Peer(Transport(options), Crowd.address + UInt32(number))
    peers.append(peer)
    while true {
      if case .done = send(8, nil, from: peer) { break }
      carry(with: peer)
    }
    carry(with: peer)
    return peer
  }

  /// Nil: there is no session yet.
  func send(_ size: Int, _ progress: Transport.Progress?, from peer: Peer) -> Transport.Sending? {
    guard case .open(let session) = peer.transport.session(
      localAddress: peer.address, remoteAddress: Crowd.address, datagramMax: 1472, now: now)
    else { return nil }
    var content = [UInt8](repeating: 7, count: size)
    return unsafe content.withUnsafeMutableBytes { raw in
      let bytes = unsafe Bytes(unsafe: raw.baseAddress!, count: size)
      return peer.transport.send(
        session, bytes, localPort: 1, remotePort: 2, ttl: 64, tos: 0, progress: progress, now: now)
    }
  }

  /// 0.1 ms, in which a host's packets arrive, and the server's at that host; others never see theirs.
  func carry(with peer: Peer) {
    peer.transport.expire(now: now)
    while let it = peer.transport.pollTransmit(into: room, now: now) {
      if room.u8(1) & MachnetPacket.numbered != 0 {
        peer.tag = room.u64(4)
        peer.number = room.u32(12) &+ 1
      }
      give(it.length, it.ports, from: peer)
    }
    server.expire(now: now)
    hear()
    while let it = server.pollTransmit(into: room, now: now) {
      guard it.remoteAddress == peer.address else { continue }
      let arrival = Transport.Arrival(
        localAddress: peer.address, remoteAddress: Crowd.address, ports: it.ports, datagramMax: 1472)
      _ = peer.transport.handle(room.slice(0, to: it.length), arrival, now: now)
      while let event = peer.transport.pollEvent() { if case .closed(_, _, _, let reason, _) = event { closed.append(reason) } }
    }
    now += 100_000
  }

  private func give(_ length: Int, _ ports: PortPair, from peer: Peer) {
    let arrival = Transport.Arrival(
      localAddress: Crowd.address, remoteAddress: peer.address, ports: ports, datagramMax: 1472)
    if let (_, content) = server.handle(room.slice(0, to: length), arrival, now: now) {
      received[peer.address, default: []].append(content.count)
    }
    hear()
  }

  private func hear() {
    while let event = server.pollEvent() {
      switch event {
      case .message(let message, let content): received[message.remoteAddress, default: []].append(content.count)
      case .closed(_, _, _, let reason, _): closed.append(reason)
      default: break
      }
    }
  }

  /// A packet made by hand: a piece of one of the peer's messages.
  func give(piece index: Int, of message: UInt32, total: Int, number: UInt32, from peer: Peer) {
    var head = MachnetHeader(type: MachnetPacket.data, engine: 0, tag: peer.tag)
    head.flags = MachnetPacket.numbered
    head.number = number
    head.window = 256
    head.emit(into: room)
    let offset = index * Crowd.piece
    let length = min(Crowd.piece, total - offset)
    MachnetChunk(
      message: message, total: UInt32(total), offset: UInt32(offset), kind: MachnetChunk.piece, length: length, sourcePort: 1,
      destinationPort: 2, ttl: 64, tos: 0
    ).emit(into: room.slice(MachnetPacket.headerLength))
    // Its ports were found by spraying; any of the range will do.
    give(MachnetPacket.headerLength + MachnetChunk.headerLength + length, ports, from: peer)
  }

  /// A peer that lies begins as many messages as it gets in: behind a packet that is missing, then in order.
  func flood(from peer: Peer, total: Int, count: UInt32) {
    for index in (0..<count).reversed() {
      let message = UInt32(total) + index
      give(piece: 0, of: message, total: total, number: peer.number &+ index, from: peer)
      peer.begun.append((message, total, 1))
    }
    peer.number &+= count
  }

  /// And goes on with each of them, a piece at a time, but for the last piece.
  func trickle(from peer: Peer) {
    for index in peer.begun.indices {
      let it = peer.begun[index]
      if (it.pieces + 1) * Crowd.piece >= it.total { continue }
      give(piece: it.pieces, of: it.message, total: it.total, number: peer.number, from: peer)
      peer.begun[index].pieces += 1
      peer.number &+= 1
    }
  }
}

@Suite struct Assemblies {
  @Test(arguments: [(4, false), (4, true), (16, false), (16, true), (80, false), (80, true)])
  func `peers that begin messages and never end them do not keep others from theirs`(_ liars: Int, _ trickles: Bool) {
    let crowd = Crowd()
    let honest = crowd.join()
    let others = (0..<liars).map { _ in crowd.join() }
    // What begins in order is one message of each: of the large ones, or of the others.
    for (index, peer) in others.enumerated() {
      for total in index % 2 == 0 ? [8 << 20, 60_000] : [60_000, 8 << 20] { crowd.flood(from: peer, total: total, count: 40) }
    }
    let sizes = [1 << 20] + Array(repeating: 9000, count: 20) + [8 << 20]
    let start = crowd.now
    var sent = 0
    var progress: Transport.Progress?
    var nextPiece = start
    while crowd.received[honest.address]!.count < 1 + sizes.count && crowd.now < start + 60 * seconds {
      while sent < sizes.count {
        guard case .done = crowd.send(sizes[sent], progress, from: honest).map({
          if case .blocked(let it) = $0 { progress = it }
          return $0
        }) else { break }
        sent += 1
        progress = nil
      }
      crowd.carry(with: honest)
      if trickles && crowd.now >= nextPiece {
        for peer in others { crowd.trickle(from: peer) }
        nextPiece += seconds
      }
    }
    #expect(crowd.received[honest.address]!.sorted() == ([8] + sizes).sorted())
    // 3.4 s, and for those that send a piece now and then as long again.
    #expect(crowd.now - start < (trickles ? 8 : 5) * seconds, "\(crowd.now - start) ns")
    #expect(crowd.closed.allSatisfy { $0 == .timedOut } && crowd.server.value(.assembliesStalled) > 0)
  }

  @Test func `one peer gets a quarter of the large assemblies, and one more for a packet in order`() {
    let crowd = Crowd()
    let liar = crowd.join()
    crowd.flood(from: liar, total: 8 << 20, count: 8)
    #expect(crowd.server.value(.assemblyFull) + crowd.server.value(.chunkMalformed) == 6)
    // The others are free for messages that begin out of order, too.
    let peers = [crowd.join(), crowd.join()]
    for peer in peers { crowd.give(piece: 0, of: 1, total: 8 << 20, number: peer.number, from: peer) }
    #expect(crowd.server.value(.assemblyFull) + crowd.server.value(.chunkMalformed) == 6)
  }

  @Test func `a message that begins in order before the one before it is whole is refused and counted`() {
    let crowd = Crowd()
    let peer = crowd.join()
    crowd.give(piece: 0, of: 1, total: 3000, number: peer.number, from: peer)
    crowd.give(piece: 0, of: 2, total: 3000, number: peer.number &+ 1, from: peer)
    #expect(crowd.server.value(.chunkMalformed) == 1 && crowd.received[peer.address] == [8])
    for index in 1...2 { crowd.give(piece: index, of: 1, total: 3000, number: peer.number &+ UInt32(index), from: peer) }
    for index in 0...2 { crowd.give(piece: index, of: 2, total: 3000, number: peer.number &+ UInt32(3 + index), from: peer) }
    #expect(crowd.server.value(.chunkMalformed) == 1 && crowd.received[peer.address] == [8, 3000, 3000])
  }
}
