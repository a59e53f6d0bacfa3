/// What a transport counts. Names are what `machnet status` prints.
public enum TransportCounter: Int, CaseIterable, Sendable, BitwiseCopyable {
  case packetsSent, packetsReceived
  case messagesSent, messagesReceived
  case acksSent
  case synsSent, synAcksSent
  case sessionsOpened, sessionsClosed, sessionsReset, sessionsTimedOut, sessionsRestarted
  case connectsFailed, connectsRefused
  case retransmissions, spuriousRetransmissions, probes, timeouts, spuriousTimeouts
  case resetsSent
  // What was dropped, and why.
  case malformed, otherVersion, unknownTag, addressMismatch
  case synWrongEngine, synLimited, cookieWrong, synAckUnexpected
  case resetIgnored
  case duplicates, beyondWindow
  case ackInvalid, sackInvalid
  case chunkMalformed, assemblyFull
  /// Sessions that were ended because others needed what they kept for messages that stood still.
  case assembliesStalled
  case tableFull
  /// Messages that were accepted and then lost with their session.
  case messagesLost

  @inline(__always)
  var ordinal: Int { @_noLocks get { unsafe Int(unsafeBitCast(self, to: UInt8.self)) } }
}
