import CLinux
import CMachnetABI
import MachnetChannel
import MachnetMemory

/// Orders of the control thread, taken between iterations.
extension Core {
  /// Takes what is in the mailbox.
  ///
  /// - Returns: whether there was anything.
  mutating func takeCommands() -> Bool {
    // Acquire: pairs with the control thread's release of the tail after it has written the command.
    let tail = mailbox.load(Mailbox.commandTail)
    if tail == commandsDone { return false }
    var left = Core.commandsMax
    while commandsDone != tail && left > 0 {
      left -= 1
      let command = unsafe mailbox.commandSlot(commandsDone).pointee
      if !apply(command) { break }
      commandHeldSince = 0
      commandsDone += 1
      mailbox.count(.commands)
      // Release: pairs with `isDone`. After this the control thread may unmap what the command took away.
      mailbox.store(Mailbox.commandHead, commandsDone)
    }
    return true
  }

  /// - Returns: false when the command is to be tried again in the next iteration.
  private mutating func apply(_ command: Command) -> Bool {
    switch command.kind {
    case .addChannel:
      channels[command.slot] = Channel(description: command.channel, isLive: true, place: UInt32(liveCount))
      live[liveCount] = command.slot
      liveCount += 1
    case .removeChannel:
      // What a program sent before its end is sent.
      if isLingering(channel: command.slot) { return false }
      release(channel: command.slot)
      unsafe channels[command.slot].description.base = nil
    case .open:
      open(command)
    case .connect:
      connect(command)
    case .close:
      if endpoints[command.slot].isOpen && isLingering(command.slot) { return false }
      if endpoints[command.slot].isOpen { close(command.slot) }
    case .capture:
      capture = Capture(command.capture)
      // Remembered routes know whether local deliveries are captured.
      generation &+= 1
    }
    return true
  }

  private mutating func open(_ command: Command) {
    let channel = channels[command.channelSlot]
    let description = channel.description
    guard channel.isLive, let base = unsafe description.base, command.index < description.endpointCapacity else {
      // The channel was found damaged meanwhile; its owner will hear of it.
      endpoints[command.slot].isOpen = false
      return
    }
    let identity = command.identity
    let rings = mn_rings_offset(
      command.index, description.endpointCapacity, description.engineCount, description.txCapacity,
      description.rxCapacity)
    let receive =
      rings + mn_ring_stride(UInt64(description.txCapacity))
      + UInt64(index) * mn_ring_stride(UInt64(description.rxCapacity))
    let isHome = identity.homeEngine == index
    endpoints[command.slot] = unsafe Endpoint(
      block: base + Int(mn_endpoint_offset(command.index)),
      writer: RingWriter(unsafe: base + Int(receive), capacity: description.rxCapacity),
      reader: RingReader(unsafe: base + Int(rings), capacity: description.txCapacity),
      eventDescriptor: identity.eventDescriptor, channel: command.channelSlot, index: command.index,
      rxCapacity: description.rxCapacity, txCapacity: description.txCapacity, isOpen: true, isHome: isHome,
      isReusePort: identity.reusePort, world: world(of: identity.localAddress, netns: identity.netns),
      netns: identity.netns, localPort: identity.localPort, peerPort: identity.peerPort,
      localAddress: identity.localAddress, peerAddress: identity.peerAddress)
    // (Its rings may have been in use before.)
    endpoints[command.slot].charged = endpoints[command.slot].writer.chargeTaken
    mailbox.clearCounters(endpoint: command.slot)
    blocks[Int(command.channelSlot) * Int(MN_CHANNEL_ENDPOINTS_MAX) + Int(command.index)] = command.slot
    if isHome { setBit(&channels[command.channelSlot].open, command.index) }
    demultiplexer.insert(command.slot, endpoints)
    generation &+= 1
  }

  private mutating func connect(_ command: Command) {
    guard endpoints[command.slot].isOpen else { return }
    demultiplexer.remove(command.slot, endpoints)
    endpoints[command.slot].peerAddress = command.identity.peerAddress
    endpoints[command.slot].peerPort = command.identity.peerPort
    endpoints[command.slot].localAddress = command.identity.localAddress
    endpoints[command.slot].world = world(of: command.identity.localAddress, netns: endpoints[command.slot].netns)
    demultiplexer.insert(command.slot, endpoints)
    generation &+= 1
  }

  /// Whether a closed endpoint still has datagrams to send and some time left for it: what was sent before a close
  /// is sent.
  private mutating func isLingering(_ slot: UInt32, visits limit: Int = Core.lingerVisits) -> Bool {
    guard endpoints[slot].isHome else { return false }
    if commandHeldSince == 0 { clearReady(slot) }
    guard !endpoints[slot].reader.isEmpty else { return false }
    if commandHeldSince == 0 { commandHeldSince = max(1, now) }
    if !endpoints[slot].isActive { activate(slot) }
    if now < lingerAgain {
      // What can go at once goes; other orders have waited for one of these just now.
      var visits = 0
      while visits < limit && endpoints[slot].isOpen && serve(slot) { visits += 1 }
      guard endpoints[slot].isOpen, !endpoints[slot].reader.isEmpty else { return false }
    } else if now &- commandHeldSince <= Core.lingerMax {
      return true
    } else {
      lingerAgain = now &+ Core.lingerPause
    }
    mailbox.drop(.closedUnsent, endpoint: slot)
    return false
  }

  private mutating func isLingering(channel slot: UInt32) -> Bool {
    guard channels[slot].isLive else { return false }
    var lingers = false
    for block in 0..<Int(MN_CHANNEL_ENDPOINTS_MAX) {
      let endpoint = blocks[Int(slot) * Int(MN_CHANNEL_ENDPOINTS_MAX) + block]
      // The map is only valid where the endpoint agrees.
      guard endpoints[endpoint].isOpen && endpoints[endpoint].channel == slot && endpoints[endpoint].index == block else { continue }
      if isLingering(endpoint, visits: 1) { lingers = true }
    }
    return lingers
  }

  mutating func close(_ slot: UInt32) {
    flushTouched()
    if endpoints[slot].isHeld {
      release(held: endpoints[slot].place)
      takeOffBits(slot)
    } else if endpoints[slot].isActive {
      takeOff(slot, at: endpoints[slot].place)
    }
    demultiplexer.remove(slot, endpoints)
    if endpoints[slot].parking != none { unpark(slot) }
    if endpoints[slot].sending != nil { abandonSending(slot) }
    clearBit(&channels[endpoints[slot].channel].open, endpoints[slot].index)
    endpoints[slot].isOpen = false
    generation &+= 1
  }

  /// Lets go of a channel and of all endpoints in it.
  mutating func release(channel slot: UInt32) {
    guard channels[slot].isLive else { return }
    for block in 0..<Int(MN_CHANNEL_ENDPOINTS_MAX) {
      let endpoint = blocks[Int(slot) * Int(MN_CHANNEL_ENDPOINTS_MAX) + block]
      // The map is only valid where the endpoint agrees.
      if endpoints[endpoint].isOpen && endpoints[endpoint].channel == slot && endpoints[endpoint].index == block {
        close(endpoint)
      }
    }
    channels[slot].isLive = false
    let place = channels[slot].place
    liveCount -= 1
    let moved = live[liveCount]
    live[place] = moved
    channels[moved].place = place
  }

  /// Ends all dealings with a channel in which a word cannot be: tells its owner and the control thread.
  mutating func fault(channel slot: UInt32) {
    guard channels[slot].isLive, let base = unsafe channels[slot].description.base else { return }
    unsafe mn_store_release_u32(base + Int(MN_OFFSET_CHANNEL_DAMAGED), 1)
    release(channel: slot)
    if !mailbox.post(damaged: channels[slot].description.identifier) { mailbox.drop(.faultsLost) }
    mn_linux_eventfd_signal(faultDescriptor)
  }

  /// In which world an address of an endpoint lives.
  @_noLocks
  func world(of address: UInt32, netns: UInt16) -> UInt16 {
    directory.isEngineAddress(address) ? Demultiplexer.wire : netns
  }
}
