//! One deviation of [`Model`](crate::model::Model) from the contract, and the rule that it breaks.

use tidings::replay::conformance::Rule;

macro_rules! faults {
    ($($rule:ident: $($name:ident),+;)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Fault {
            $($($name,)+)*
        }

        impl Fault {
            pub(crate) const ALL: &[(Fault, Rule)] = &[$($((Fault::$name, Rule::$rule),)+)*];
        }
    };
}

faults! {
    Answers: AppendFails, ReadFails, ForgetFails, RefusesForNoReason, RefusesWhileAnotherAppends;
    InTime: AppendNeverEnds, ReadNeverEnds;
    NewLog: NewLogStartsAtOne, NewLogHasARecord;
    NewEpoch: EpochIsFixed;
    Outcomes: NoOutcomeForRefused, EmptyBatchFails;
    PresentRun: AppendsInAnotherRun, ReadsInAnotherRun, KeepsTheRunOfARecord;
    PositionsRise: NumbersStartAnewAfterForget, NumbersOfEachTopic, NumbersOfABatchFall, OneNumberForABatch,
        NumbersAreTakenTwice, CursorsAreAskedAfterwards;
    BatchTogether: BatchesMix;
    Head: HeadIsBehind, HeadIsAhead, HeadIsTheNewestHeld, HeadIsTheLastNumberGiven;
    RefusedAlone: RefusedFailsTheBatch, RefusedEndsTheBatch;
    NoTrace: RefusedIsStored;
    Acknowledged: OutcomesAreSwapped, BatchesShareABuffer;
    Record: LabelsAreDropped, LabelsAreSorted, KeyIsDropped, EmptyKeyIsNone, BodyIsAltered, KindIsDropped, TimeInSeconds;
    TryAppend: TriesStoresAndDeclines, TriesAndDoesNotStore;
    OnlyAsked: ReadsAllTopics, ReadsTopicsByPrefix, ReadsTopicsByName, TopicsFoldCase;
    Ordered: PageIsByTopic, PageHasOneTwice, WhatWasReadIsReadAgain;
    After: AfterIsInclusive, AfterSkipsOne;
    Earliest: EarliestSkipsOne;
    Last: LastIsOneMore, LastIsOneLess, LastOfEachTopic;
    Complete: PageHasAHole;
    MaxEvents: MaxEventsIsIgnored;
    MaxBytes: MaxBytesIsIgnored, MaxBytesIsOneLate;
    NotCutShort: PageIsEmptyUnderMaxBytes, PageIsShort;
    ThroughForward: ThroughIsStuck, ThroughIsTheFirst, AnOldCopyIsRead;
    ThroughCut: ThroughIsAlwaysNewest;
    ThroughNewest: ThroughIsTheLastRecord, ThroughIsAhead, ThroughOfAFullPageIsAhead;
    Foreign: OtherEpochIsGood, OtherRunIsGood, AheadIsGood;
    NotForeign: StartIsForeign, NewestIsForeign, RemovedIsForeign, LastOfNothingIsForeign, AnOldCopyJudgesCursors;
    ForeignPage: ForeignPageHasRecords, ForeignPageGoesToTheStart;
    DroppedRead: DroppedReadHoldsTheLock;
    FinishRefuses: FinishedAccepts, FinishedAcceptsInItsBatch, EndsAreStoredByOldKnowledge,
        EventsAreStoredByOldKnowledge, FinishedIsRefusedOtherwise;
    FinishListed: FinishedIsListedEarly, FinishedIsListedOnce, FinishedIsListedTwice, AllFinishedAreListed,
        RefusedEndMovesTheEnd;
    FinishKept: FinishedIsEvicted, FinishedIsNotListedOnceEvicted;
    FloorZero: FloorIsBelowTheOldest, ForgettingAnUnknownTopicRaisesTheFloor;
    FloorCovers: EvictionRaisesNoFloor, EvictionRaisesTheFloorTooLittle, ForgetRaisesNoFloor, FloorIsOfOneTopic,
        FloorIsOfTheHeld, ForgetTakesTheFloorBefore;
    FloorInside: FloorIsPastTheNewest;
    Evicts: NothingIsEvicted;
    EvictsOldest: TheSecondNewestIsEvicted, EvictedComesBack;
    ForgetRemoves: ForgetLeavesRecords, ForgetLeavesTheEnd, ForgetDoesNothing, ForgetIsTriedTwice;
    ForgetOnly: ForgetRemovesAll, ForgetRemovesAllEnds, ForgetHidesTheOthers;
    NothingLower: NumberIsGivenBeforeTheCommit;
    OneView: FloorIsOfAnEarlierView, ThroughIsOfALaterView, ForgetGoesOneByOne, ForgetRaisesTheFloorLater;
    SameEpoch: EpochIsDrawnAtOpen;
    NewRun: OpeningBeginsNoRun, RunNumberIsUsedAgain;
    ReopenKeeps: NewestIsLostAtOpen;
    ReopenFinished: EndsAreLostAtOpen;
    ReopenFloors: FloorsAreLostAtOpen;
    OlderRun: OlderRunsAreForeign;
    OlderRunPast: OlderRunsAreGood, OlderRunsAreGoodUpToTheLast;
}
