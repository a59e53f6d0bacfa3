public import MachnetChannel
public import MachnetTransport

/// What an engine does when an iteration found nothing to do.
public enum Polling: String, Sendable, CaseIterable {
  /// Looks again at once: a core of its own.
  case busy
  /// Lets others run on its core (`sched_yield`), then looks again. Never sleeps.
  case yield
  /// Yields, and after `idleMicroseconds` without work sleeps until a doorbell or an interrupt.
  case adaptive
}

/// One queue of one port, as an engine sees it. Addresses in host byte order.
public struct InterfaceOptions: Sendable {
  public var name: String
  public var address: UInt32
  public var mask: UInt32
  /// 0: none.
  public var gateway: UInt32 = 0
  /// Of the IP layer, bytes: 576...65,535 (RFC 791 asks every host to take 576).
  public var mtu: Int = 1500
  /// The port's Ethernet address, in its 48 low bits (the first octet on the wire is the highest).
  public var mac: UInt64
  public var queue: Int = 0
  /// How many queues, and so engines, the interface has.
  public var queues: Int = 1
  /// What IP_PKTINFO reports for datagrams that arrive here; 0: unknown.
  public var index: UInt32 = 0

  public init(name: String, address: UInt32, mask: UInt32, gateway: UInt32 = 0, mtu: Int = 1500, mac: UInt64) {
    self.name = name
    self.address = address
    self.mask = mask
    self.gateway = gateway
    self.mtu = mtu
    self.mac = mac
  }
}

/// How one engine is to work. Fixed at its start.
@safe
public struct EngineOptions: @unchecked Sendable {
  /// Number of the engine: 0..<`MN_ENGINES_MAX`.
  public var index: UInt32
  public var polling: Polling = .adaptive
  /// How long an adaptive engine yields before it sleeps.
  public var idleMicroseconds: Int = 200
  /// How long a datagram for a full local receiver waits in its sender's ring.
  public var localStallMicroseconds: Int = 1000
  /// Yields right after it has woken somebody: for an engine whose core the applications share.
  public var sharesCore: Bool = false
  /// Each interface is a host of its own: traffic between two of them goes over the wire, not through local delivery.
  public var separateHosts: Bool = false
  public var directory: Directory
  /// Where the time comes from, ns, if not from the machine: then an engine does the same in every run.
  ///
  /// Safety: valid as long as the engine lives, and written by the thread that steps it.
  public var virtualTime: UnsafePointer<UInt64>? = nil
  /// What the transport `machnet` of all ports has in common; each port's own is derived from it.
  public var transport = TransportOptions(
    engine: 0, engines: 1, epoch: .random(in: 1 ... .max), seed: (.random(in: 0 ... .max), .random(in: 0 ... .max)))
  /// How long a message waits in its sender's ring for a remote socket that has no room.
  public var pauseMilliseconds: Int = 250
  /// What messages of sockets without room may take in the engine, in units of `parkingBytes`; of one socket, one of them.
  public var parkings: Int = 16
  public static var parkingBytes: Int { Core.lotsOfParking * (Core.lotSize + MemoryLayout<Core.Lot>.stride) }
  /// Bytes that an engine keeps about a session of a transport, beside what the transport does.
  public static var sessionBytes: Int { 2 * PortSets.stride }
  /// Bytes of the largest session packet on an interface.
  public static func sessionDatagram(mtu: Int) -> Int { min(mtu - Core.datagramOverhead, Core.sessionDatagramMax) }
  /// One per port that the engine is given, in that order.
  public var interfaces: [InterfaceOptions] = []

  public init(index: UInt32, directory: Directory, interfaces: [InterfaceOptions] = []) {
    self.index = index
    self.directory = directory
    self.interfaces = interfaces
  }
}

/// Names an endpoint: a channel and the number of its block there.
public struct EndpointReference: Hashable, Sendable {
  public var channel: UInt32
  public var index: UInt32

  public init(channel: UInt32, index: UInt32) {
    self.channel = channel
    self.index = index
  }
}

/// What the kernel granted the endpoint's shadow. Addresses and ports in host byte order.
public struct EndpointIdentity: Sendable, BitwiseCopyable {
  /// Index of the network namespace; 0 is the daemon's own.
  public var netns: UInt16 = 0
  /// 0: the wildcard.
  public var localAddress: UInt32 = 0
  public var localPort: UInt16
  /// Port 0: not connected.
  public var peerAddress: UInt32 = 0
  public var peerPort: UInt16 = 0
  /// The endpoint's eventfd (non-blocking); the caller closes it when the close ticket is done.
  public var eventDescriptor: Int32
  public var homeEngine: UInt32 = 0
  /// SO_REUSEPORT: endpoints of one address share its datagrams. Without it the latest one gets them all.
  public var reusePort = false

  public init(localPort: UInt16, eventDescriptor: Int32) {
    self.localPort = localPort
    self.eventDescriptor = eventDescriptor
  }
}
