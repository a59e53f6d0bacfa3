import CMachnetABI
import MachnetChannel
import MachnetTransport

/// "No slot": ends chains and lists.
@inline(__always)
var none: UInt32 { @_noLocks get { 0xFFFF_FFFF } }

/// An endpoint as one engine knows it: the engine's own words, none of which the application can write.
@safe
struct Endpoint {
  /// Safety: the block lies in the channel, mapped until the channel is removed.
  var block: UnsafeMutableRawPointer
  /// The RX ring of this engine.
  var writer: RingWriter
  /// The TX ring; read by the home engine alone.
  var reader: RingReader
  var eventDescriptor: Int32
  /// Slot of the channel, and the number of the block there.
  var channel: UInt32
  var index: UInt32
  var rxCapacity: UInt32
  var txCapacity: UInt32

  var isOpen: Bool
  var isHome: Bool
  var isActive = false
  var isTouched = false
  /// Its RX ring stayed full for too long: what is sent to it is dropped until the ring is half empty.
  var isSlow = false
  var isReusePort: Bool
  /// In which world its address lives: a network namespace, or `Demultiplexer.wire`.
  var world: UInt16
  var netns: UInt16
  var localPort: UInt16
  var peerPort: UInt16
  var localAddress: UInt32
  var peerAddress: UInt32
  /// Its neighbours in a chain of the demultiplexer.
  var next = none
  var previous = none
  /// Where it is in the list of active endpoints, or of those that are held.
  var place = 0

  /// Visits in a row that found nothing.
  var emptyVisits: UInt32 = 0
  /// Sum of mn_charge() of what was put into the RX ring under a receive limit.
  var charged: UInt64 = 0
  /// Bytes of the record at the head of the TX ring that are already delivered (UDP_SEGMENT).
  var progress: UInt32 = 0
  /// When the head of its TX ring was first refused by a full receiver; 0: it was not.
  var stalledSince: UInt64 = 0

  /// How much of the record at the head of the TX ring a session has accepted; nil: nothing.
  var sending: Transport.Progress? = nil
  /// And whose transport; the datagram's length, and its destination.
  var sendingPort: UInt32 = 0
  var sendingLength: UInt32 = 0
  var sendingDestination: UInt32 = 0

  /// The session that took its last message, of whatever port: the first to be tried.
  var session = none

  /// Where its messages wait for room in the RX ring, the first and the last lot; `none`: nowhere.
  var parking = none
  var lastParked = none
  var parkedLots: UInt32 = 0
  var parkedMessages: UInt32 = 0
  /// Its senders were told that it has no room; when that was last.
  var isFull = false
  var toldAt: UInt64 = 0

  /// The head of its TX ring waits for this socket of the peer of `session`, at this port; is it to be, or is it, off the
  /// active list for that.
  var heldPort: UInt32 = 0
  var heldRemotePort: UInt16 = 0
  var isToHold = false
  var isHeld = false

  /// The last answer of `route`, and what it was an answer to.
  var routeAddress: UInt32 = 0
  var routePort: UInt16 = 0
  var routeGeneration: UInt32 = 0
  var route = Route.refused(.noRoute)

  /// Received in this burst and not yet counted.
  var burstDatagrams: UInt32 = 0
  var burstBytes: UInt32 = 0
}

/// Where a datagram goes.
struct Route: BitwiseCopyable {
  /// `tapped`: local, and captured.
  enum Kind: UInt8 { case local, port, refused, tapped }
  var kind: Kind
  /// Why it goes nowhere.
  var reason: DropReason
  /// The endpoint or the port.
  var target: UInt32
  /// Address of the next hop on the port's link.
  var hop: UInt32 = 0
  /// The address that it comes from.
  var source: UInt32 = 0
  /// What IP_PKTINFO will tell the receiver.
  var interface: UInt32 = 0

  @inline(__always) @_noLocks
  static func refused(_ reason: DropReason) -> Route { Route(kind: .refused, reason: reason, target: none) }
}

/// A channel as one engine knows it.
struct Channel {
  var description: ChannelDescription
  var isLive: Bool
  /// Its place in the list of live channels.
  var place: UInt32 = 0
  /// Per block: is it open here; is it on the active list. One bit each.
  var open: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
  var active: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
  /// Lots in which messages for its endpoints wait.
  var parkedLots: UInt32 = 0
}
