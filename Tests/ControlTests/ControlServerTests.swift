import CLinux
import CMachnetABI
import Foundation
import MachnetChannel
import Synchronization
import Testing

@testable import MachnetControl

@Suite(.serialized) struct AttachTests {
  @Test func aProgramAttachesAndOpensASocket() throws {
    try withDaemon(engines: 2) { daemon in
      let application = try TestApplication(daemon, program: "memcached")
      #expect(application.doorbells == 2)
      #expect(application.header.magic == MN_MAGIC && application.header.engine_count == 2)
      #expect(application.header.size == UInt64(application.size))
      let socket = TestSocket()
      let port = try socket.bind()
      let reply = try application.open(socket)
      #expect(reply.header.status == 0 && reply.descriptors.count == 1)
      #expect(reply.header.local_port == port && ipv4(reply.header.local.words) == 0x7f00_0001)
      #expect(reply.header.netns == 0 && reply.header.engine == reply.header.endpoint % 2)
      #expect(application.block(reply.header.endpoint).state == 1)
      #expect(daemon.directory.directory.hasLocalEndpoint(netns: 0, address: 0x7f00_0001, port: port))
      #expect(!daemon.directory.directory.hasLocalEndpoint(netns: 1, address: 0x7f00_0001, port: port))
      let status = try daemon.status()
      #expect(status.sockets.map(\.program) == ["memcached"])
      #expect(status.sockets.map(\.local) == ["127.0.0.1:\(port)"])
      #expect(status.sockets.map(\.pid) == [Int(getpid())])

      try application.close(reply.header.endpoint)
      #expect(try daemon.status().sockets.isEmpty)
      #expect(!daemon.directory.directory.hasLocalEndpoint(netns: 0, address: 0x7f00_0001, port: port))
      #expect(try daemon.eventually { _ in application.block(reply.header.endpoint).state == 0 })
    }
  }

  @Test func theDirectoryCannotBeWrittenByAnApplication() throws {
    try withDaemon { daemon in
      let client = try daemon.client()
      let reply = try client.call(client.request(MN_REQUEST_HELLO))
      let number = reply.descriptors[0].number
      let writable = unsafe mmap(nil, MN_DIRECTORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, number, 0)
      #expect(unsafe writable == MAP_FAILED)
      let again = unsafe Glibc.open("/proc/self/fd/\(number)", O_RDWR)
      if again >= 0 {
        let mapping = unsafe mmap(nil, MN_DIRECTORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0)
        #expect(unsafe mapping == MAP_FAILED)
        #expect(ftruncate(again, 0) != 0)
        Glibc.close(again)
      }
      let mapping = unsafe mmap(nil, MN_DIRECTORY_SIZE, PROT_READ, MAP_SHARED, number, 0)
      try #require(unsafe mapping != MAP_FAILED)
      let directory = unsafe Directory(unsafe: mapping!)
      #expect(directory.isValid)
      unsafe munmap(mapping, MN_DIRECTORY_SIZE)
    }
  }

  @Test func aChannelCannotBeResized() throws {
    try withDaemon { daemon in
      let client = try daemon.client()
      let reply = try client.call(client.request(MN_REQUEST_CHANNEL))
      #expect(ftruncate(reply.descriptors[0].number, 0) != 0)
      #expect(ftruncate(reply.descriptors[0].number, off_t(reply.header.size) * 2) != 0)
    }
  }

  @Test func aBlockIsUsedAgainAndAsNew() throws {
    try withDaemon(change: { $0.channel.endpoints = 1 }) { daemon in
      let application = try TestApplication(daemon)
      var last: UInt32 = 0
      for round in 0..<5 {
        let socket = TestSocket()
        try socket.bind()
        let other = TestSocket()
        try other.bind()
        var reply = try application.open(socket)
        // The engine may not have let go of the block's last use yet.
        while reply.header.status == ENOSPC && round > 0 { reply = try application.open(socket) }
        #expect(reply.header.status == 0)
        #expect(try application.open(other).header.status == ENOSPC)
        let block = application.block(0)
        #expect(block.generation > last && block.rx_wait == 0 && block.tx_lock == 0)
        last = block.generation
        // Left behind by a sloppy application.
        let endpoint = unsafe (application.base + Int(mn_endpoint_offset(0))).assumingMemoryBound(to: mn_endpoint.self)
        unsafe endpoint.pointee.tx_lock = 77
        unsafe endpoint.pointee.rx_wait = 1
        try application.close(0)
      }
      // A full channel is no trouble that a person is to be told of.
      #expect(try daemon.status().daemon.refusedRequests == 0)
    }
  }

  /// What a socket that goes back to the kernel has not received yet, it reads from its rings.
  @Test func aBlockThatIsKeptIsNobodyElsesUntilItIsClosedAgain() throws {
    try withDaemon(change: { $0.channel.endpoints = 1 }) { daemon in
      var application = try TestApplication(daemon)
      let socket = TestSocket(), other = TestSocket()
      let port = try socket.bind()
      try other.bind()
      for round in 0..<6 {
        var reply = try application.open(socket)
        while reply.header.status == ENOSPC && round > 0 { reply = try application.open(socket) }
        #expect(reply.header.status == 0)
        // What was not received of the last block is in this one.
        #expect(application.receiveAll(0) == (round == 0 ? 0 : 100))
        #expect(try daemon.status().unclaimed?.isEmpty == true)
        // Enough to make the daemon give the memory back, if it could.
        application.deliver(0, count: 100)
        try application.close(0, keeping: true)
        #expect(!daemon.directory.directory.hasLocalEndpoint(netns: 0, address: 0x7f00_0001, port: port))
        #expect(try daemon.status().sockets.isEmpty)
        if round % 3 != 0 {
          #expect(try daemon.eventually { _ in application.block(0).state == UInt32(MN_ENDPOINT_LEFT) })
          #expect(try application.open(other).header.status == ENOSPC)
          // Once is enough, and what is kept cannot be connected.
          try application.close(0, keeping: true)
          var request = application.client.request(MN_REQUEST_CONNECT)
          request.channel = application.channel
          request.token = application.header.token
          #expect(try application.client.call(request, descriptors: [socket.descriptor]).header.status == ENOENT)
          #expect(application.unread(0) == 100)
          #expect(try daemon.status().unclaimed?.isEmpty == true)
        }
        // The end of the channel is the end of all that was kept.
        if round % 3 == 2 { application = try TestApplication(daemon) } else { try application.close(0) }
        #expect(try daemon.eventually { $0.unclaimed?.map(\.datagrams) == [100] })
        #expect(try daemon.status().daemon.abandonedDatagrams == 0)
      }
      // With the socket goes what waited for it.
      socket.finish()
      #expect(try daemon.eventually { $0.unclaimed?.isEmpty == true && $0.daemon.abandonedDatagrams == 100 })
      let another = TestSocket()
      try another.bind()
      var request = application.client.request(MN_REQUEST_CLOSE)
      request.flags = 64
      request.channel = application.channel
      request.token = application.header.token
      #expect(try application.open(another).header.status == 0)
      try application.client.send(request)
      #expect(try daemon.eventually { $0.daemon.disconnectedLiars == 1 })
    }
  }

  /// Closed by a raw system call, or by the death of a forked child.
  @Test func anEndpointEndsWithItsSocketAlthoughNobodySaysSo() throws {
    try withDaemon { daemon in
      let application = try TestApplication(daemon)
      let living = TestSocket()
      try living.bind()
      let kept = try application.open(living).header.endpoint
      var port: UInt16 = 0
      do {
        let socket = TestSocket()
        port = try socket.bind()
        #expect(try application.open(socket).header.status == 0)
        #expect(daemon.directory.directory.hasLocalEndpoint(netns: 0, address: 0x7f00_0001, port: port))
      }
      let limit = Date(timeIntervalSinceNow: 20)
      while daemon.directory.directory.hasLocalEndpoint(netns: 0, address: 0x7f00_0001, port: port) && Date() < limit { sched_yield() }
      #expect(!daemon.directory.directory.hasLocalEndpoint(netns: 0, address: 0x7f00_0001, port: port))
      #expect(application.block(kept).state == UInt32(MN_ENDPOINT_LIVE))
      #expect(try daemon.status().sockets.count == 1)
      // The application hears of it later, and closes what it believes to be open.
      try application.close(1 - kept)
      #expect(try daemon.eventually { _ in application.block(1 - kept).state == 0 })
    }
  }

  @Test func aSecondChannelIsGrantedUpToTheLimit() throws {
    try withDaemon(change: { $0.channel.maximumPerProcess = 2 }) { daemon in
      let application = try TestApplication(daemon)
      #expect(try application.client.call(application.client.request(MN_REQUEST_CHANNEL)).header.status == 0)
      #expect(try application.client.call(application.client.request(MN_REQUEST_CHANNEL)).header.status == EMFILE)
    }
  }

  @Test func connectionsBeyondTheLimitAreTurnedAway() throws {
    try withDaemon(change: { $0.limits.connections = 2 }) { daemon in
      let first = try TestApplication(daemon)
      let second = try daemon.client()
      #expect(try second.call(second.request(MN_REQUEST_HELLO)).header.status == 0)
      let third = try daemon.client()
      try? third.send(third.request(MN_REQUEST_HELLO))
      #expect(try third.receive() == nil)
      #expect(first.channel != 0)
    }
  }

  @Test func endpointsBeyondTheDaemonsLimitAreRefused() throws {
    try withDaemon(change: { $0.channel.maximumEndpoints = 1 }) { daemon in
      let application = try TestApplication(daemon)
      let sockets = [TestSocket(), TestSocket()]
      for socket in sockets { try socket.bind() }
      #expect(try application.open(sockets[0]).header.status == 0)
      #expect(try application.open(sockets[1]).header.status == ENFILE)
    }
  }

  @Test func whatAClientHasGivenUpIsNotDoneLater() throws {
    try withDaemon { daemon in
      let application = try TestApplication(daemon)
      let socket = TestSocket()
      try socket.bind()
      let late = mn_linux_monotonic() - 1
      #expect(try application.open(socket) { $0.deadline = late }.header.status == ETIMEDOUT)
      var request = application.client.request(MN_REQUEST_CHANNEL)
      request.deadline = late
      #expect(try application.client.call(request).header.status == ETIMEDOUT)
      let status = try daemon.status()
      #expect(status.sockets.isEmpty)
      // In time; and by a clock that cannot be this one.
      let sockets = [socket, TestSocket()]
      try sockets[1].bind()
      #expect(try application.open(sockets[0]) { $0.deadline = late + 60_000_000_000 }.header.status == 0)
      #expect(try application.open(sockets[1]) { $0.deadline = 1 }.header.status == 0)
    }
  }
}

@Suite(.serialized) struct ShadowTests {
  @Test func whatIsNoBoundUDPSocketForIPv4IsRefused() throws {
    try withDaemon { daemon in
      let application = try TestApplication(daemon)
      func status(_ socket: TestSocket) throws -> Int32 { try application.open(socket).header.status }
      #expect(try status(TestSocket()) == EINVAL)
      #expect(try status(TestSocket(type: Int32(SOCK_STREAM.rawValue))) == EPROTOTYPE)
      #expect(try status(TestSocket(family: AF_UNIX)) == EAFNOSUPPORT)
      let only6 = TestSocket(family: AF_INET6)
      try only6.set(Int32(IPPROTO_IPV6), IPV6_V6ONLY)
      try only6.bind6Wildcard()
      #expect(try status(only6) == EAFNOSUPPORT)
      let dual = TestSocket(family: AF_INET6)
      try dual.set(Int32(IPPROTO_IPV6), IPV6_V6ONLY, 0)
      try dual.bind6Wildcard()
      let reply = try application.open(dual)
      #expect(reply.header.status == 0 && ipv4(reply.header.local.words) == 0)
      // No socket at all: the client's own directory descriptor.
      let directory = try application.client.call(application.client.request(MN_REQUEST_HELLO)).descriptors[0]
      var request = application.client.request(MN_REQUEST_OPEN)
      request.channel = application.channel
      #expect(try application.client.call(request, descriptors: [directory.number]).header.status == ENOTSOCK)
    }
  }

  /// Order, content and length of what is moved from an old block into a new one, also where it has gone around the ring; what
  /// the application has written into its own rings meanwhile is its own affair, and nobody else's.
  @Test func whatNobodyReceivedIsMovedAsItWas() throws {
    try withDaemon { daemon in
      for round in 0..<4 {
        let socket = TestSocket()
        try socket.bind()
        var application: TestApplication? = try TestApplication(daemon)
        let index = try application!.open(socket).header.endpoint
        let lengths = [0, 1, 63, 64, 1472, 65507, 1, 9000]
        do {
          let first = application!
          // Somewhere in the ring.
          for _ in 0..<2 {
            first.deliver(index, count: 100)
            #expect(first.receiveAll(index) == 100)
          }
          for (number, length) in lengths.enumerated() {
            first.deliver(index, count: 1, length: length, seed: UInt8(number), flags: UInt16(MN_RECORD_CHARGED))
          }
          if round % 2 == 1 { first.damage(index) }
          if round < 2 { try first.close(index) }
        }
        if round >= 2 { application = nil }
        let second = try TestApplication(daemon)
        var request = second.client.request(MN_REQUEST_OPEN)
        request.channel = second.channel
        request.flags = UInt32(MN_OPEN_KNOWN)
        let reply = try second.client.call(request, descriptors: [socket.descriptor])
        if round % 2 == 1 {
          #expect(reply.header.status == ENOENT)
          continue
        }
        #expect(reply.header.status == 0)
        var number = 0
        let count = second.receiveAll(reply.header.endpoint) { record in
          #expect(record.length == lengths[number])
          #expect(unsafe record.header.pointee.flags & UInt16(MN_RECORD_CHARGED) == 0)
          #expect(unsafe UnsafeRawBufferPointer(start: record.payload, count: record.length).allSatisfy { $0 == UInt8(number) })
          number += 1
        }
        #expect(count == lengths.count)
        // Once.
        try second.close(reply.header.endpoint)
        #expect(try second.client.call(request, descriptors: [socket.descriptor]).header.status == ENOENT)
      }
    }
  }

  @Test func aSocketIsOpenedOnce() throws {
    try withDaemon { daemon in
      let application = try TestApplication(daemon)
      let socket = TestSocket()
      try socket.bind()
      let first = try application.open(socket)
      let again = try application.open(socket)
      #expect(again.header.status == 0 && again.header.endpoint == first.header.endpoint && again.header.size == 0)
      #expect(again.descriptors.count == 1 && application.block(0).references == 0)
    }
  }

  /// A process that has a socket of another's (by fork and exec, or passed to it) shares its endpoint, as forked processes do.
  @Test func anotherProcessJoins() throws {
    try withDaemon { daemon in
      let opener = try TestApplication(daemon)
      let socket = TestSocket()
      try socket.bind()
      let block = try opener.open(socket).header.endpoint
      opener.refer(block, 1)
      opener.deliver(block, count: 3)
      func close(_ application: TestApplication) throws {
        var request = application.client.request(MN_REQUEST_CLOSE)
        request.channel = opener.channel
        request.endpoint = block
        try application.client.send(request)
        _ = try application.client.call(application.client.request(MN_REQUEST_STATUS))
      }

      do {
        let joiner = try TestApplication(daemon)
        let joined = try joiner.open(socket)
        #expect(joined.header.status == 0 && joined.header.channel == opener.channel && joined.header.endpoint == block)
        // The eventfd, the memory with all that is in it, the doorbells.
        #expect(joined.descriptors.count == 2 + opener.doorbells && joined.header.size == UInt64(opener.size))
        #expect(opener.block(block).references == 2 && opener.unread(block) == 3)
        // It lets go and takes part again; while others are there, the endpoint stays.
        opener.refer(block, -1)
        try close(joiner)
        #expect(opener.block(block).state == UInt32(MN_ENDPOINT_LIVE) && opener.block(block).references == 1)
        #expect(try joiner.open(socket).header.status == 0 && opener.block(block).references == 2)
      }
      // It has ended without a word.
      #expect(try daemon.eventually { _ in opener.block(block).references == 1 })
      #expect(try daemon.status().sockets.count == 1)

      // The opener lets go first: a close that says so for the last of those who knew of each other comes too late.
      let joiner = try TestApplication(daemon)
      #expect(try joiner.open(socket).header.status == 0)
      opener.refer(block, -1)
      try close(opener)
      #expect(opener.block(block).state == UInt32(MN_ENDPOINT_LIVE))
      opener.refer(block, -1)
      try close(joiner)
      #expect(try daemon.eventually { _ in opener.block(block).state == UInt32(MN_ENDPOINT_FREE) })
      // The socket is there still, and what was not received.
      #expect(try daemon.status().unclaimed?.map(\.datagrams) == [3])
    }
  }

  /// Its channel lives as long as anybody who has joined an endpoint in it; but sockets that only the opener had end with it, and
  /// what it kept to read.
  @Test func aJoinedEndpointOutlivesItsOpener() throws {
    try withDaemon { daemon in
      let shared = TestSocket(), own = TestSocket(), retired = TestSocket()
      for socket in [shared, own, retired] { try socket.bind() }
      var opener: TestApplication? = try TestApplication(daemon)
      let blocks = try [shared, own, retired].map { try opener!.open($0).header.endpoint }
      for block in blocks { opener!.refer(block, 1) }
      opener!.deliver(blocks[2], count: 5)
      try opener!.close(blocks[2], keeping: true)
      #expect(try daemon.eventually { _ in opener!.block(blocks[2]).state == UInt32(MN_ENDPOINT_LEFT) })
      let joiner = try TestApplication(daemon)
      #expect(try joiner.open(shared).header.status == 0)
      own.finish()
      opener = nil
      #expect(try daemon.eventually { $0.sockets.count == 1 && $0.unclaimed?.map(\.datagrams) == [5] && $0.daemon.channels == 2 })
      #expect(try daemon.status().sockets[0].local == "127.0.0.1:\(shared.port)")
      // The last one of the channel.
      let last = try TestApplication(daemon)
      #expect(try last.open(shared).header.size != 0)
    }
  }

  /// Who maps a channel sees all of its sockets. So the kernel gets the socket back, and those who have the endpoint read on.
  @Test(.enabled(if: geteuid() == 0)) func anotherUserDoesNotJoin() throws {
    try withDaemon(change: { $0.control.mode = 0o666 }) { daemon in
      let opener = try TestApplication(daemon), joined = try TestApplication(daemon)
      let socket = TestSocket()
      try socket.bind()
      #expect(try opener.open(socket).header.status == 0)
      #expect(try joined.open(socket).header.status == 0)
      opener.deliver(0, count: 3)
      let references = opener.block(0).references
      let other = try asUser(65534) { try TestApplication(daemon) }
      let reply = try other.open(socket)
      #expect(reply.header.status == EEXIST && reply.descriptors.isEmpty && opener.block(0).references == references)
      #expect(try daemon.eventually { $0.sockets.isEmpty && opener.block(0).state == UInt32(MN_ENDPOINT_WITHDRAWN) })
      let refusals = try daemon.status().processes.flatMap(\.refusals).filter { $0.reason.contains("different users") }
      #expect(refusals.count == 2)
      // It stays so for all, also when the other one asks again.
      for application in [opener, joined, other] { #expect(try application.open(socket).header.status == EEXIST) }
      // The first to close it takes nothing from those who read on.
      try opener.close(0)
      #expect(opener.block(0).state == UInt32(MN_ENDPOINT_WITHDRAWN) && opener.unread(0) == 3)
    }
  }

  /// Before an exec, what is kept is for whoever opens the socket next, unless that is the same process (its exec has failed).
  @Test func whatAnExecLeavesIsTheNextOpeners() throws {
    try withDaemon { daemon in
      let socket = TestSocket()
      try socket.bind()
      let first = try TestApplication(daemon), second = try TestApplication(daemon)
      func leave(_ application: TestApplication, _ endpoint: UInt32) throws {
        var request = application.client.request(MN_REQUEST_CLOSE)
        request.flags = UInt32(MN_CLOSE_KEEPING | MN_CLOSE_LEAVING)
        request.channel = application.channel
        request.endpoint = endpoint
        try application.client.send(request)
        #expect(try daemon.eventually { _ in application.block(endpoint).state == UInt32(MN_ENDPOINT_LEFT) })
      }
      let block = try first.open(socket).header.endpoint
      first.deliver(block, count: 3)
      try leave(first, block)
      let again = try first.open(socket).header.endpoint
      #expect(again != block && first.unread(block) == 3 && first.unread(again) == 0)
      try first.close(block)
      first.deliver(again, count: 2)
      try leave(first, again)
      let found = try second.open(socket).header
      // (What was left in the first block has been waiting since that was closed.)
      #expect(found.status == 0 && second.unread(found.endpoint) == 5)
      #expect(try daemon.eventually { _ in first.block(again).state == UInt32(MN_ENDPOINT_FREE) })
    }
  }

  /// Who has passed a socket to another process reads on what it has kept; the other one's turn comes when it closes that, or ends,
  /// also if it is a forked child that closed what lies in its parent's channel.
  @Test func whatIsPassedOnIsTheSendersUntilItClosesIt() throws {
    try withDaemon { daemon in
      for way in 0..<3 {
        let socket = TestSocket()
        try socket.bind()
        var sender: TestApplication? = try TestApplication(daemon)
        let receiver = try TestApplication(daemon)
        let block = try sender!.open(socket).header.endpoint
        sender!.deliver(block, count: 3)
        var child: ControlClient? = way == 2 ? try daemon.client() : nil
        if let child {
          var request = child.request(MN_REQUEST_CLOSE)
          request.flags = UInt32(MN_CLOSE_KEEPING)
          request.channel = sender!.channel
          request.endpoint = block
          request.token = sender!.header.token
          try child.send(request)
        } else {
          try sender!.close(block, keeping: true)
        }
        #expect(try daemon.eventually { _ in sender!.block(block).state == UInt32(MN_ENDPOINT_LEFT) })
        for _ in 0..<2 { #expect(try receiver.open(socket).header.status == EBUSY) }
        #expect(sender!.unread(block) == 3)
        switch way {
        case 0: try sender!.close(block)
        case 1: sender = nil
        default: child = nil
        }
        var found = try receiver.open(socket).header
        while found.status == EBUSY { found = try receiver.open(socket).header }
        #expect(found.status == 0 && receiver.unread(found.endpoint) == 3)
      }
    }
  }

  /// A daemon whose engine hangs ends, and its programs hear of that; one whose engine only sleeps does not.
  @Test func aStalledEngineEndsTheDaemon() throws {
    try withDaemon(engines: 2, change: { $0.engine.stallSeconds = 2 }) { daemon in
      let application = try TestApplication(daemon)
      #expect(try daemon.status().engines.map(\.stalledSeconds) == [0, 0])
      daemon.enginesAreStuck.store(true, ordering: .relaxed)
      // The connection hangs up.
      var gone = false
      let limit = Date(timeIntervalSinceNow: 20)
      while !gone && Date() < limit {
        do { _ = try application.client.call(application.client.request(MN_REQUEST_STATUS)) } catch { gone = true }
      }
      #expect(gone)
      daemon.server.stop()
      daemon.awaitServer()
      #expect((daemon.failure.value as? StalledEngine)?.seconds == 2)
    }
  }

  @Test func pulses() {
    // A sleeping engine is asked once, and answers.
    var pulse = EnginePulse()
    var asked = 0
    for look in 1...100 {
      switch pulse.feel(rounds: UInt64(asked), limit: 10) {
      case .fine: break
      case .quiet: asked += 1
      case .gone: Issue.record("gone at look \(look)")
      }
    }
    #expect(asked >= 10)
    for (limit, last) in [(1, 3), (2, 3), (3, 3), (10, 10), (3600, 3600)] {
      var pulse = EnginePulse()
      _ = pulse.feel(rounds: 5, limit: limit)
      let findings = (1...4000).map { _ in pulse.feel(rounds: 5, limit: limit) }
      #expect(findings.firstIndex(of: .gone).map { $0 + 1 } == last, "limit \(limit)")
      #expect(findings.firstIndex(of: .quiet)! < last - 1 && pulse.stalledSeconds == 4000)
    }
    // Off: nobody goes, but it is seen.
    pulse = EnginePulse()
    #expect((1...100).allSatisfy { _ in pulse.feel(rounds: 0, limit: 0) != .gone } && pulse.stalledSeconds == 100)
  }

  /// A socket with 3 unread datagrams, whose descriptor its application passes on `passes` times; and its block.
  private func passed(_ passes: Int, by sender: TestApplication) throws -> (TestSocket, UInt32) {
    let socket = TestSocket()
    try socket.bind()
    let block = try sender.open(socket).header.endpoint
    sender.refer(block, 1)
    sender.deliver(block, count: 3)
    for _ in 0..<passes { try sender.close(block, how: MN_CLOSE_KEEPING | MN_CLOSE_PASSING) }
    return (socket, block)
  }

  /// Who is passed a socket joins its endpoint and reads what its sender has left; when all of them have shown it, engines fill it again.
  @Test func whatAllReceiversShowComesBack() throws {
    try withDaemon { daemon in
      for passes in 1...3 {
        let sender = try TestApplication(daemon)
        let (socket, block) = try passed(passes, by: sender)
        #expect(try daemon.eventually { _ in sender.block(block).state == UInt32(MN_ENDPOINT_LEFT) })
        let received = sender.receiveMark(block)
        #expect(received.tail != 0 && received.mark == received.tail)
        var receivers: [TestApplication] = []
        for pass in 1...passes {
          #expect(sender.block(block).state == UInt32(MN_ENDPOINT_LEFT))
          receivers.append(try TestApplication(daemon))
          // (The same one counts once.)
          for _ in 0..<(pass == passes ? 1 : 2) {
            let found = try receivers.last!.open(socket).header
            #expect(found.status == 0 && found.channel == sender.channel && found.endpoint == block && found.size == UInt64(sender.size))
          }
        }
        #expect(sender.block(block).state == UInt32(MN_ENDPOINT_LIVE) && sender.unread(block) == 3)
        #expect(sender.block(block).references == UInt32(2 * passes))
        #expect(try daemon.status().sockets.count { $0.local == "127.0.0.1:\(socket.port)" } == 1)
      }
    }
  }

  /// One that is not shown by all stays as it is for those who have it, whoever ends first; and what they leave waits for the next.
  @Test func whatIsNotShownByAllIsReadByThoseWhoHaveIt() throws {
    try withDaemon { daemon in
      for way in 0..<3 {
        var sender: TestApplication? = try TestApplication(daemon)
        let receiver = try TestApplication(daemon)
        let (socket, block) = try passed(2, by: sender!)
        let channel = sender!.channel, token = sender!.header.token
        func close() throws {
          var request = receiver.client.request(MN_REQUEST_CLOSE)
          (request.channel, request.endpoint, request.token) = (channel, block, token)
          try receiver.client.send(request)
          _ = try receiver.client.call(receiver.client.request(MN_REQUEST_STATUS))
        }
        #expect(try daemon.eventually { _ in sender!.block(block).state == UInt32(MN_ENDPOINT_LEFT) })
        #expect(try receiver.open(socket).header.channel == channel)
        switch way {
        case 0:
          // The receiver closes, then the sender.
          sender!.refer(block, -1)
          try close()
          #expect(sender!.block(block).state == UInt32(MN_ENDPOINT_LEFT) && sender!.unread(block) == 3)
          sender!.refer(block, -1)
          try sender!.close(block)
        case 1:
          // The sender closes: nobody is told, because the receiver holds it.
          sender!.refer(block, -2)
          try close()
        default:
          sender = nil
          #expect(try daemon.eventually { $0.unclaimed?.isEmpty ?? true })
          try close()
        }
        #expect(try daemon.eventually { $0.unclaimed?.map(\.datagrams) == [3] })
        let next = try receiver.open(socket).header
        #expect(next.status == 0 && next.channel == receiver.channel && receiver.unread(next.endpoint) == 3)
      }
    }
  }

  @Test func theTokenProvesAccessToAnothersChannel() throws {
    try withDaemon { daemon in
      let parent = try TestApplication(daemon)
      let child = try daemon.client()
      let socket = TestSocket()
      try socket.bind()
      var request = child.request(MN_REQUEST_OPEN)
      request.channel = parent.channel
      #expect(try child.call(request, descriptors: [socket.descriptor]).header.status == EACCES)
      request.token = parent.header.token ^ 1
      #expect(try child.call(request, descriptors: [socket.descriptor]).header.status == EACCES)
      request.token = parent.header.token
      #expect(try child.call(request, descriptors: [socket.descriptor]).header.status == 0)
      #expect(try daemon.status().sockets.count == 1)
    }
  }

  @Test func connectFollowsTheKernelAndOnlyForTheSameSocket() throws {
    try withDaemon { daemon in
      let application = try TestApplication(daemon)
      let socket = TestSocket()
      let port = try socket.bind("0.0.0.0")
      let opened = try application.open(socket)
      #expect(ipv4(opened.header.local.words) == 0)
      #expect(daemon.directory.directory.hasLocal(mn_local_key(0, 0, port)))
      var request = application.client.request(MN_REQUEST_CONNECT)
      request.channel = application.channel
      request.endpoint = opened.header.endpoint
      let stranger = TestSocket()
      try stranger.bind()
      #expect(try application.client.call(request, descriptors: [stranger.descriptor]).header.status == EACCES)
      try socket.connect("127.0.0.2", port: 9)
      let reply = try application.client.call(request, descriptors: [socket.descriptor])
      #expect(reply.header.status == 0 && ipv4(reply.header.local.words) == 0x7f00_0001)
      #expect(try daemon.status().sockets.map(\.peer) == ["127.0.0.2:9"])
      #expect(!daemon.directory.directory.hasLocal(mn_local_key(0, 0, port)))
      #expect(daemon.directory.directory.hasLocal(mn_local_key(0, 0x7f00_0001, port)))
    }
  }

  @Test func aConnectedSocketGetsTheAddressOfTheInterfaceThatReachesItsPeer() throws {
    // 203.0.113.0/24 (RFC 5737) is on no test machine.
    let interface = mn_interface(address: 0xcb00_7104, mask: 0xffff_ff00, gateway: 0, mtu: 1500)
    try withDaemon(interfaces: [interface]) { daemon in
      let application = try TestApplication(daemon)
      let socket = TestSocket()
      try socket.bind("0.0.0.0")
      let reply = try application.open(socket) {
        $0.flags = UInt32(MN_OPEN_PEER)
        $0.peer = mapped(0xcb00_7109)
        $0.peer_port = 5000
      }
      #expect(reply.header.status == 0 && ipv4(reply.header.local.words) == 0xcb00_7104)
      let loopback = TestSocket()
      try loopback.bind("127.0.0.1")
      let other = try application.open(loopback) {
        $0.flags = UInt32(MN_OPEN_PEER)
        $0.peer = mapped(0xcb00_7109)
        $0.peer_port = 5000
      }
      #expect(ipv4(other.header.local.words) == 0x7f00_0001)
    }
  }

  @Test func anEngineOwnedAddressBelongsToOneSocketOrToThoseThatShareIt() throws {
    let interface = mn_interface(address: 0xcb00_7104, mask: 0xffff_ff00, gateway: 0, mtu: 1500)
    try withDaemon(interfaces: [interface]) { daemon in
      let application = try TestApplication(daemon)
      func socket(_ port: UInt16, sharing: Bool) throws -> TestSocket {
        let socket = TestSocket()
        try socket.set(Int32(IPPROTO_IP), 15 /* IP_FREEBIND */)
        if sharing { try socket.set(SOL_SOCKET, SO_REUSEPORT) }
        try socket.bind("203.0.113.4", port: port)
        return socket
      }
      let first = try socket(0, sharing: true)
      #expect(try application.open(first).header.status == 0)
      let second = try socket(first.port, sharing: true)
      #expect(try application.open(second).header.status == 0)
      #expect(try daemon.status().sockets.map(\.local) == Array(repeating: "203.0.113.4:\(first.port)", count: 2))
      // The kernel has its port back as soon as a program closes its socket; the daemon waits for the close.
      let port = first.port
      first.finish()
      second.finish()
      let late = try socket(port, sharing: false)
      #expect(try application.open(late).header.status == EADDRINUSE)
      for endpoint in try daemon.status().sockets { try application.close(UInt32(endpoint.endpoint)) }
      #expect(try application.open(late).header.status == 0)
      // An address that is nobody's here.
      let foreign = TestSocket()
      try foreign.set(Int32(IPPROTO_IP), 15)
      try foreign.bind("203.0.113.5")
      #expect(try application.open(foreign).header.status == EADDRNOTAVAIL)
    }
  }

  @Test(.enabled(if: geteuid() == 0, "needs root: makes a network namespace"))
  func anotherNetworkNamespaceIsAWorldOfItsOwn() throws {
    let interface = mn_interface(address: 0xcb00_7104, mask: 0xffff_ff00, gateway: 0, mtu: 1500)
    try withDaemon(interfaces: [interface]) { daemon in
      let application = try TestApplication(daemon)
      // A thread in a namespace of its own makes the sockets; a socket stays where it was made.
      let made = Box<[TestSocket]>([])
      let ready = DispatchSemaphore(value: 0)
      Thread {
        if enterNewNetworkNamespace() {
          let loopback = TestSocket()
          let engine = TestSocket()
          try? engine.set(Int32(IPPROTO_IP), 15)
          // Loopback is down in a new namespace: the wildcard does.
          if (try? loopback.bind("0.0.0.0", port: 5353)) != nil, (try? engine.bind("203.0.113.4", port: 7)) != nil {
            made.value = [loopback, engine]
          }
        }
        ready.signal()
      }.start()
      ready.wait()
      try #require(made.value.count == 2)
      let here = TestSocket()
      try here.bind("0.0.0.0", port: 5353)
      #expect(try application.open(here).header.netns == 0)
      let there = try application.open(made.value[0])
      #expect(there.header.status == 0 && there.header.netns == 1)
      #expect(daemon.directory.directory.hasLocal(mn_local_key(1, 0, 5353)))
      #expect(try application.open(made.value[1]).header.status == EACCES)
      try application.close(there.header.endpoint)
      #expect(try daemon.status().sockets.count == 1)
      #expect(!daemon.directory.directory.hasLocal(mn_local_key(1, 0, 5353)))
    }
  }
}

/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
struct SplitMix: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = (state ^ state >> 30) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
    return z ^ z >> 31
  }
}

/// Moves the calling thread.
private func enterNewNetworkNamespace() -> Bool {
  guard let symbol = unsafe dlsym(nil, "unshare") else { return false }
  let unshare = unsafe unsafeBitCast(symbol, to: (@convention(c) (Int32) -> Int32).self)
  return unshare(0x4000_0000 /* CLONE_NEWNET */) == 0
}

@Suite(.serialized) struct LiarTests {
  /// What no client of ours sends; each in an otherwise right request.
  static let lies: [(String, @Sendable (inout mn_request) -> Void)] = [
    ("magic", { $0.magic ^= 1 }),
    ("version", { $0.version += 1 }),
    ("kind 0", { $0.kind = 0 }),
    ("kind 9", { $0.kind = 9 }),
    ("reserved", { $0.reserved.1 = 1 }),
    ("an open without its descriptor", { $0.kind = UInt16(MN_REQUEST_OPEN) }),
    ("a program name without an end", { unsafe withUnsafeMutableBytes(of: &$0.program) { unsafe _ = $0.initializeMemory(as: UInt8.self, repeating: 65) } }),
  ]

  @Test(arguments: lies.indices)
  func aLieIsAnsweredCountedAndEndsTheConnection(index: Int) throws {
    let (name, tell) = Self.lies[index]
    try withDaemon { daemon in
      let client = try daemon.client()
      var request = client.request(MN_REQUEST_HELLO)
      tell(&request)
      #expect(try client.call(request).header.status == EPROTO, "\(name)")
      #expect(try client.receive() == nil)
      #expect(try daemon.status().daemon.disconnectedLiars == 1)
    }
  }

  @Test func requestsAboutThingsThatAreNotThere() throws {
    try withDaemon { daemon in
      let application = try TestApplication(daemon)
      let socket = TestSocket()
      try socket.bind()
      #expect(try application.open(socket) { $0.channel += 1 }.header.status == ENOENT)
      #expect(try application.open(socket) { $0.flags = UInt32(MN_OPEN_PEER); $0.peer.words.0 = 1 }.header.status == EAFNOSUPPORT)
      var connect = application.client.request(MN_REQUEST_CONNECT)
      connect.channel = application.channel
      connect.endpoint = 3
      #expect(try application.client.call(connect, descriptors: [socket.descriptor]).header.status == ENOENT)
      // A close of nothing has no answer and does no harm.
      try application.close(3)
      #expect(try application.open(socket).header.status == 0)
      #expect(try daemon.status().daemon.disconnectedLiars == 0)
    }
  }

  @Test(arguments: [
    (MN_REQUEST_OPEN, UInt32(4), UInt32(0)), (MN_REQUEST_CONNECT, 2, 0), (MN_REQUEST_CONNECT, 0, 256),
    (MN_REQUEST_CLOSE, 0, UInt32.max),
  ] as [(Int, UInt32, UInt32)])
  func fieldsOutOfRange(kind: Int, flags: UInt32, endpoint: UInt32) throws {
    try withDaemon { daemon in
      let application = try TestApplication(daemon)
      let socket = TestSocket()
      try socket.bind()
      var request = application.client.request(kind)
      request.channel = application.channel
      request.flags = flags
      request.endpoint = endpoint
      if kind == MN_REQUEST_CONNECT && endpoint == 0 { _ = try application.open(socket) }
      let descriptors = kind == MN_REQUEST_CLOSE ? [] : [socket.descriptor]
      #expect(try application.client.call(request, descriptors: descriptors).header.status == EPROTO)
      #expect(try application.client.receive() == nil)
      #expect(try daemon.status().sockets.isEmpty)
    }
  }

  @Test(arguments: [1, 127, 129, 4096])
  func lengthsThatAreWrong(length: Int) throws {
    try withDaemon { daemon in
      let client = try daemon.client()
      var bytes = [UInt8](repeating: 0, count: max(length, 128))
      let request = client.request(MN_REQUEST_HELLO)
      unsafe withUnsafeBytes(of: request) { unsafe bytes.replaceSubrange(0..<128, with: $0) }
      try unsafe bytes.withUnsafeBytes { try unsafe client.send(bytes: UnsafeRawBufferPointer(rebasing: $0[..<length])) }
      #expect(try client.receive()?.header.status == EPROTO)
      #expect(try client.receive() == nil)
    }
  }

  /// Requests that are right but for some bytes, in any order, on connections that come and go.
  @Test func aThousandMutilatedRequestsHarmNobody() throws {
    let seed = ProcessInfo.processInfo.environment["SEED"].flatMap(UInt64.init) ?? UInt64.random(in: 0...UInt64.max)
    print("SEED=\(seed)")
    var random = SplitMix(state: seed)
    try withDaemon { daemon in
      let honest = try TestApplication(daemon, program: "honest")
      let socket = TestSocket()
      let port = try socket.bind()
      #expect(try honest.open(socket).header.status == 0)
      // Not the honest one's: who holds that may join it, and then close it for both.
      let other = TestSocket()
      _ = try other.bind()
      var liar = try daemon.client()
      for _ in 0..<1000 {
        var request = liar.request(Int.random(in: MN_REQUEST_HELLO...MN_REQUEST_RELOAD, using: &random))
        request.channel = UInt32.random(in: 0...3, using: &random)
        request.endpoint = UInt32.random(in: 0...3, using: &random)
        if Bool.random(using: &random) {
          unsafe withUnsafeMutableBytes(of: &request) { bytes in
            for _ in 0..<Int.random(in: 1...8, using: &random) {
              unsafe bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
            }
          }
        }
        let descriptors = Array(repeating: other.descriptor, count: Int.random(in: 0...2, using: &random))
        let isAlive = (try? liar.send(request, descriptors: descriptors)) != nil
        // A close has no answer; the next answer is awaited instead.
        if !isAlive || request.kind != UInt16(MN_REQUEST_CLOSE) && (try? liar.receive()) == nil {
          liar = try daemon.client()
        }
      }
      let report = try daemon.status()
      #expect(report.sockets.filter { $0.program == "honest" }.map(\.local) == ["127.0.0.1:\(port)"])
      #expect(report.daemon.disconnectedLiars > 0)
    }
  }

  @Test func surplusDescriptorsAreClosedAndALie() throws {
    try withDaemon { daemon in
      let client = try daemon.client()
      // When the daemon has closed its copies, the writing end of this pipe is the last.
      var ends: [Int32] = [0, 0]
      try #require(unsafe pipe(&ends) == 0)
      let reply = try client.call(client.request(MN_REQUEST_HELLO), descriptors: Array(repeating: ends[1], count: 20))
      #expect(reply.header.status == EPROTO)
      Glibc.close(ends[1])
      var byte: UInt8 = 0
      #expect(unsafe read(ends[0], &byte, 1) == 0)
      Glibc.close(ends[0])
    }
  }

  /// A close of a TCP socket with unsent bytes waits as long as its SO_LINGER says, if it is the last one.
  @Test(.timeLimit(.minutes(1)), arguments: ["with the request", "beyond what a request may have", "in a message that nobody reads"])
  func aDescriptorThatIsSlowToCloseHoldsNobodyUp(_ way: String) throws {
    try withDaemon { daemon in
      let polite = try TestApplication(daemon)
      let (slow, other) = try unsentSocket()
      let client = try daemon.client()
      var descriptors = [slow]
      switch way {
      case "with the request":
        try client.send(client.request(MN_REQUEST_OPEN), descriptors: descriptors)
      case "beyond what a request may have":
        let ballast = TestSocket()
        descriptors = Array(repeating: ballast.descriptor, count: 31) + descriptors
        try client.send(client.request(MN_REQUEST_HELLO), descriptors: descriptors)
      default:
        var lie = client.request(MN_REQUEST_HELLO)
        lie.magic = 0
        try client.send(lie)
        // (Where the daemon has hung up already, nothing is sent.)
        try? client.send(client.request(MN_REQUEST_OPEN), descriptors: descriptors)
      }
      // Ours is the last one where the daemon was quicker.
      SlowClose.shared.close(slow, of: 0)
      // (The daemon has taken one of these when it answers the second: events come in turn.)
      for _ in 0..<3 { #expect(try polite.client.call(polite.client.request(MN_REQUEST_HELLO)).header.status == 0) }
      Glibc.close(other)
    }
  }

  /// A TCP socket whose close has to send what its peer, the second, has no room for.
  private func unsentSocket() throws -> (Int32, Int32) {
    let listener = TestSocket(type: Int32(SOCK_STREAM.rawValue))
    try listener.bind()
    try #require(listen(listener.descriptor, 1) == 0)
    let slow = TestSocket(type: Int32(SOCK_STREAM.rawValue))
    try slow.connect("127.0.0.1", port: listener.port)
    let other = accept(listener.descriptor, nil, nil)
    try #require(other >= 0)
    let bytes = [UInt8](repeating: 0, count: 1 << 16)
    while unsafe send(slow.descriptor, bytes, bytes.count, Int32(MSG_DONTWAIT)) > 0 {}
    var forever = linger(l_onoff: 1, l_linger: 1000)
    try #require(unsafe setsockopt(slow.descriptor, SOL_SOCKET, SO_LINGER, &forever, socklen_t(MemoryLayout<linger>.size)) == 0)
    return (dup(slow.descriptor), other)
  }

  /// Asks and reads no answer, until the daemon hangs up.
  ///
  /// - Parameter meanwhile: each time that nothing more can be sent.
  /// - Returns: the errno value of the end.
  private func flood(_ deaf: ControlClient, meanwhile: () throws -> Void) throws -> Int32 {
    while true {
      do throws(SystemError) {
        try deaf.send(deaf.request(MN_REQUEST_HELLO))
      } catch {
        try meanwhile()
        if error.code != EAGAIN { return error.code }
      }
    }
  }

  /// The descriptors in replies that nobody reads count for the daemon, whose user may have only so many on their way (unix(7)).
  @Test func fewRepliesLieUnread() throws {
    try withDaemon { daemon in
      let deaf = try daemon.client()
      _ = try flood(deaf) { _ = sched_yield() }
      var replies = 0
      // What the daemon has left unread is told once, before its replies (ECONNRESET).
      var first = try? deaf.receive()
      if first == nil { first = try? deaf.receive() }
      while let reply = first {
        #expect(reply.header.status == 0)
        replies += 1
        first = try? deaf.receive()
      }
      #expect((4...32).contains(replies), "\(replies)")
    }
  }

  @Test func aNameIsPrintedWithoutControls() throws {
    try withDaemon { daemon in
      let application = try TestApplication(daemon, program: "a\u{9B}\u{1B}\u{202E}\u{E9}\n")
      _ = application
      #expect(try daemon.status().processes.map(\.program).contains("a???\u{E9}?"))
    }
  }

  /// Whatever one user has, as many are left for others.
  @Test(.enabled(if: geteuid() == 0)) func oneUserDoesNotTakeAllEndpoints() throws {
    try withDaemon(change: {
      $0.control.mode = 0o666
      $0.channel.maximumEndpoints = 8
    }) { daemon in
      let greedy = try asUser(65534) { try TestApplication(daemon) }
      let sockets = (0..<8).map { _ in TestSocket() }
      var granted = 0
      for socket in sockets {
        try socket.bind()
        let status = try greedy.open(socket).header.status
        if status == 0 { granted += 1 } else { #expect(status == ENFILE) }
      }
      #expect(granted == 4)
      let other = try asUser(65533) { try TestApplication(daemon) }
      let socket = TestSocket()
      try socket.bind()
      #expect(try other.open(socket).header.status == 0)
    }
  }

  @Test func aClientThatDoesNotReadIsDisconnectedAndHoldsNobodyUp() throws {
    try withDaemon { daemon in
      let deaf = try daemon.client()
      let polite = try TestApplication(daemon)
      let code = try flood(deaf) { () throws in
        #expect(try polite.client.call(polite.client.request(MN_REQUEST_HELLO)).header.status == 0)
      }
      #expect(code == EPIPE || code == ECONNRESET)
    }
  }

  @Test func aStatusOfAnotherVersionIsSaidToBeOne() throws {
    try withDaemon(render: { _ in "{\"daemon\": {\"pid\": 1}}" }) { daemon in
      let client = try daemon.client()
      #expect(try client.statusText() == "{\"daemon\": {\"pid\": 1}}")
      do throws(SystemError) {
        _ = try client.status()
        Issue.record("it was understood")
      } catch {
        #expect(error.code == EPROTO)
      }
    }
  }

  @Test(.timeLimit(.minutes(1))) func aStatusThatTakesLongHoldsNobodyUp() throws {
    let mayEnd = DispatchSemaphore(value: 0)
    let written = Box(0)
    try withDaemon(render: { report in
      mayEnd.wait()
      written.value += 1
      return report.json
    }) { daemon in
      let first = try daemon.client(), second = try daemon.client(), third = try daemon.client()
      for client in [first, second, third] { try client.send(client.request(MN_REQUEST_STATUS)) }
      // While it is written: programs attach, and who asks again is told to wait for the first answer.
      let application = try TestApplication(daemon)
      let socket = TestSocket()
      _ = try socket.bind()
      #expect(try application.open(socket).header.status == 0)
      #expect(try first.call(first.request(MN_REQUEST_STATUS)).header.status == EBUSY)
      // One that leaves is no trouble.
      do { let gone = try daemon.client(); try gone.send(gone.request(MN_REQUEST_STATUS)) }
      mayEnd.signal()
      mayEnd.signal()
      let replies = try [first, second, third].map { try #require(try $0.receive()) }
      for reply in replies { #expect(reply.header.status == 0 && Int(reply.header.kind) == MN_REQUEST_STATUS) }
      #expect(replies.map(\.header.sequence) == [1, 1, 1])
      // Whoever asked while the first was written shares the next one, which knows the socket.
      #expect(try StatusReport(json: ControlClient.text(replies[0])).sockets.isEmpty)
      #expect(try StatusReport(json: ControlClient.text(replies[2])).sockets.count == 1)
      #expect(written.value == 2)
    }
  }

  @Test func aDamagedChannelEndsItsConnection() throws {
    try withDaemon { daemon in
      let application = try TestApplication(daemon)
      let neighbour = try TestApplication(daemon)
      let socket = TestSocket()
      try socket.bind()
      let reply = try application.open(socket)
      application.publishNonsense(reply.header.endpoint)
      #expect(try application.client.receive() == nil)
      #expect(application.block(reply.header.endpoint).state == 2)
      #expect(application.header.damaged == 1)
      #expect(try daemon.status().daemon.damagedChannels == 1)
      #expect(try neighbour.open(socket).header.status == 0)
    }
  }
}

@Suite(.serialized) struct LifeTests {
  @Test func everythingOfAClientGoesWithItsConnection() throws {
    try withDaemon(engines: 2) { daemon in
      var application: TestApplication? = try TestApplication(daemon)
      let sockets = (0..<20).map { _ in TestSocket() }
      for socket in sockets {
        try socket.bind("0.0.0.0")
        #expect(try application?.open(socket).header.status == 0)
      }
      #expect(try daemon.status().daemon.endpoints == 20)
      application = nil
      #expect(try daemon.eventually { $0.daemon.endpoints == 0 && $0.daemon.channels == 0 })
      for socket in sockets { #expect(!daemon.directory.directory.hasLocal(mn_local_key(0, 0, socket.port))) }
    }
  }

  @Test func everythingOfAKilledProcessIsReclaimed() throws {
    try withDaemon { daemon in
      var application: TestApplication? = try TestApplication(daemon)
      let socket = TestSocket()
      try socket.bind()
      #expect(try application?.open(socket).header.status == 0)
      // The connection's last holder is another process, and that one is killed.
      let process = Process()
      process.executableURL = URL(fileURLWithPath: "/bin/sleep")
      process.arguments = ["1000"]
      process.standardInput = FileHandle(fileDescriptor: application!.client.socket.number, closeOnDealloc: false)
      try process.run()
      application = nil
      #expect(try daemon.status().daemon.endpoints == 1)
      #expect(kill(process.processIdentifier, SIGKILL) == 0)
      #expect(try daemon.eventually { $0.daemon.endpoints == 0 && $0.daemon.channels == 0 && $0.daemon.departing == 0 })
      process.waitUntilExit()
      let after = try TestApplication(daemon)
      #expect(try after.open(socket).header.status == 0)
    }
  }

  @Test func anInheritedConnectionKeepsTheChannel() throws {
    try withDaemon { daemon in
      var application: TestApplication? = try TestApplication(daemon)
      let lifeline = dup(application!.client.socket.number)
      let socket = TestSocket()
      try socket.bind()
      _ = try application?.open(socket)
      application = nil
      #expect(try daemon.status().daemon.endpoints == 1)
      Glibc.close(lifeline)
      #expect(try daemon.eventually { $0.daemon.endpoints == 0 })
    }
  }

  @Test func memoryOfAChannelWaitsForAnEngineThatIsBusy() throws {
    try withDaemon { daemon in
      let client = try daemon.client()
      #expect(try client.call(client.request(MN_REQUEST_CHANNEL)).header.status == 0)
      daemon.enginesAreStuck.store(true, ordering: .relaxed)
      #expect(shutdown(client.socket.number, Int32(SHUT_RDWR)) == 0)
      #expect(try daemon.eventually { $0.daemon.channels == 0 })
      #expect(try daemon.status().daemon.departing == 1)
      daemon.enginesAreStuck.store(false, ordering: .relaxed)
      #expect(try daemon.eventually { $0.daemon.departing == 0 })
    }
  }

  @Test func aStoppedDaemonSaysSoAndTakesItsSocketAway() throws {
    let daemon = try TestDaemon()
    let application = try TestApplication(daemon)
    daemon.stop()
    #expect(daemon.directory.directory.isStopping)
    #expect(try application.client.receive() == nil)
    #expect(unsafe access(daemon.config.control.socket, F_OK) != 0)
    #expect(throws: SystemError.self) { try daemon.client() }
  }

  /// The umask is the whole process's: what another thread creates while a socket is made must not be without rights.
  @Test func makingTheControlSocketLeavesTheUmaskAlone() throws {
    let path = "\(scratch)/umask.sock"
    let stopped = Atomic(false)
    let changed = Atomic(0)
    let created = Atomic(0)
    let watcher = Thread {
      while !stopped.load(ordering: .relaxed) {
        let file = unsafe open("\(path).file", O_CREAT | O_WRONLY, 0o777)
        var status = stat()
        if unsafe fstat(file, &status) == 0, status.st_mode & 0o700 != 0o700 { changed.add(1, ordering: .relaxed) }
        created.add(1, ordering: .relaxed)
        close(file)
        unsafe unlink("\(path).file")
      }
      created.store(-1, ordering: .releasing)
    }
    watcher.start()
    var made = 0
    while made < 2_000 || created.load(ordering: .relaxed) < 2_000 {
      let listener = unsafe mnc_listen(path, 0o640, UInt32.max)
      try #require(listener >= 0)
      var status = stat()
      #expect(unsafe stat(path, &status) == 0 && status.st_mode & 0o777 == 0o640)
      close(listener)
      unsafe unlink(path)
      made += 1
    }
    stopped.store(true, ordering: .relaxed)
    while created.load(ordering: .acquiring) >= 0 { sched_yield() }
    #expect(changed.load(ordering: .relaxed) == 0)
  }

  @Test func aSecondDaemonOnThePathIsRefusedAndAStaleSocketReplaced() throws {
    try withDaemon { daemon in
      let path = daemon.config.control.socket
      #expect(throws: SystemError.self) { try TestDaemon(change: { $0.control.socket = path }) }
      let report = try daemon.status()
      #expect(report.daemon.controlSocket == path)
    }
    // A socket file that nobody listens at.
    let stale = "\(scratch)/stale.sock"
    let listener = unsafe mnc_listen(stale, 0o600, UInt32.max)
    try #require(listener >= 0)
    Glibc.close(listener)
    try withDaemon(change: { $0.control.socket = stale }) { daemon in
      let report = try daemon.status()
      #expect(report.daemon.controlSocket == stale)
      var status = stat()
      #expect(unsafe stat(stale, &status) == 0 && status.st_mode & 0o777 == 0o660)
    }
    // A file that is no socket is somebody's.
    let file = "\(scratch)/file"
    try "precious".write(toFile: file, atomically: true, encoding: .utf8)
    #expect(throws: SystemError.self) { try TestDaemon(change: { $0.control.socket = file }) }
    #expect(try String(contentsOfFile: file, encoding: .utf8) == "precious")
  }

  @Test func aReloadPutsNewRulesInForceAndAMistakeKeepsTheOld() throws {
    try withDaemon { daemon in
      let client = try daemon.client()
      let before = daemon.directory.directory.rulesGeneration
      var next = daemon.config
      next.flows = [Config.Flow(path: .machnet, line: 7)]
      daemon.nextConfig.value = .success(next)
      #expect(try client.call(client.request(MN_REQUEST_RELOAD)).header.status == 0)
      let directory = daemon.directory.directory
      #expect(directory.rulesGeneration == before &+ 1)
      #expect(directory.rules(generation: directory.rulesGeneration).count == 1)
      #expect(directory.rules(generation: directory.rulesGeneration).rule(0).line == 7)
      daemon.nextConfig.value = .failure(ConfigFailure(description: "m.yaml:1:1: error: expected sense"))
      let reply = try client.call(client.request(MN_REQUEST_RELOAD))
      #expect(reply.header.status == EINVAL)
      #expect(try ControlClient.text(reply) == "m.yaml:1:1: error: expected sense")
      #expect(directory.rulesGeneration == before &+ 1)
      #expect(try daemon.status().daemon.rules == 1)
    }
  }
}
