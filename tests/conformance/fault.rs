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
    NoTrace: RefusedIsStored, RefusedReplaces;
    Acknowledged: OutcomesAreSwapped, BatchesShareABuffer;
    Record: LabelsAreDropped, LabelsAreSorted, KeyIsDropped, EmptyKeyIsNone, BodyIsAltered, KindIsDropped,
        KindIsOnlyWhetherItEnds, TimeInSeconds, TimeInThirtyTwoBits, TimeIsAMillisecondLate, AllAreOfTheFirstTopic;
    TryAppend: TriesStoresAndDeclines, TriesAndDoesNotStore, TriesAndDoesNotReplace;
    OnlyAsked: ReadsAllTopics, ReadsTopicsByPrefix, ReadsTopicsByName, TopicsFoldCase;
    Ordered: PageIsByTopic, PageHasOneTwice, WhatWasReadIsReadAgain;
    After: AfterIsInclusive, AfterSkipsOne;
    Earliest: EarliestSkipsOne;
    Last: LastIsOneMore, LastIsOneLess, LastOfEachTopic, LastCountsTheReplaced;
    Complete: PageHasAHole;
    MaxEvents: MaxEventsIsIgnored;
    MaxBytes: MaxBytesIsIgnored, MaxBytesIsOneLate;
    NotCutShort: PageIsEmptyUnderMaxBytes, PageIsShort, PageCountsTheReplaced;
    ThroughForward: ThroughIsStuck, ThroughIsTheFirst, ThroughOfAnEmptyPageIsBehind, AnOldCopyIsRead;
    ThroughCut: ThroughIsAlwaysNewest;
    ThroughNewest: ThroughIsTheLastRecord, ThroughIsAhead, ThroughOfAFullPageIsAhead;
    Foreign: OtherEpochIsGood, OtherRunIsGood, AheadIsGood, OneAheadIsGood, TopBitOfAnEpochIsLost, TopBitOfARunIsLost,
        TopBitOfAPositionIsLost;
    NotForeign: StartIsForeign, NewestIsForeign, RemovedIsForeign, ReplacedIsForeign,
        LastOfNothingIsForeign, AnOldCopyJudgesCursors;
    ForeignPage: ForeignPageHasRecords, ForeignPageGoesToTheStart;
    DroppedRead: DroppedReadHoldsTheLock;
    FinishRefuses: FinishedAccepts, FinishedAcceptsInItsBatch, EndsAreStoredByOldKnowledge,
        EventsAreStoredByOldKnowledge, FinishedIsRefusedOtherwise;
    FinishListed: FinishedIsListedEarly, FinishedIsListedOnce, FinishedIsListedTwice, AllFinishedAreListed,
        AllAskedAreListed,         RefusedEndMovesTheEnd;
    FinishKept: FinishedIsEvicted, FinishedIsNotListedOnceEvicted;
    FloorZero: FloorIsBelowTheOldest, ForgettingAnUnknownTopicRaisesTheFloor;
    FloorCovers: EvictionRaisesNoFloor, EvictionRaisesTheFloorTooLittle, ForgetRaisesNoFloor, FloorIsOfOneTopic,
        FloorIsOfTheHeld, ForgetTakesTheFloorBefore, EvictedStateRaisesNoFloor, KeysOutliveEviction;
    FloorInside: FloorIsPastTheNewest;
    Evicts: NothingIsEvicted, StateIsNotEvicted;
    EvictsOldest: TheSecondNewestIsEvicted, TheNewestStateIsEvicted, EvictedComesBack;
    ForgetRemoves: ForgetLeavesRecords, ForgetLeavesTheEnd, ForgetLeavesTheRefusal, ForgetDoesNothing,
        ForgetIsTriedTwice, ForgetLeavesState, ForgetBringsBackTheEvicted;
    ForgetOnly: ForgetRemovesAll, ForgetRemovesAllEnds, ForgetHidesTheOthers;
    Replaces: NothingIsReplaced, RemovalsReplaceNothing, RemovalsStay, ReplacesOnlyItsKind, ReplacesOnlyAcrossBatches,
        ReplacesOnlyInItsBatch, ReplacesOnlyTheNewest, EmptyKeyReplacesNothing, TheOlderStays, ReplacesInPlace,
        ReplacesByOldKnowledge;
    ReplacesOnly: EventsReplace, EventsAreReplaced, EndsReplace, ReplacesEveryKey, ReplacesInAllTopics,
        ReplacesInTopicsByPrefix, ReplacesInTopicsByName, KeysFoldCase, KeysAreNormalized, KeysAreTrimmed, KeysEndAtNul, KeysAreCut, KeysAreNumbers, KeysArePatterns,
        KeysArePastedToTopics, KeysAreJoinedToTopics, NoKeyIsAKey, TheNewerGoesToo, RemovalsAreNotStored, KeysOutliveForget;
    ReplacingRaisesNoFloor: ReplacingRaisesTheFloor, EvictsBeforeItReplaces, FloorCountsTheReplaced;
    RepeatIsKnown: RepeatsAreStored, RepeatsInABatchAreStored, RepeatsAreAtTheNewest, RepeatsAreRefusedOtherwise,
        EmptyIdempotencyKeyIsNone, RepeatsAreOfTheirKind;
    RepeatOnly: RepeatsInAnyTopic, IdempotencyKeysFoldCase, IdempotencyKeysAreCut, NoIdempotencyKeyIsOne,
        RefusedAreRemembered;
    RepeatOutlives: IdempotencyKeysGoWithTheirRecords, RepeatsOfFinishedTopicsAreFinished;
    RepeatAtOnce: RepeatsAreStoredByOldKnowledge;
    NothingLower: NumberIsGivenBeforeTheCommit;
    OneView: FloorIsOfAnEarlierView, ThroughIsOfALaterView, ThroughOfAnEmptyPageIsOfALaterView, ForgetGoesOneByOne,
        ForgetRaisesTheFloorLater;
    ReplacesAtOnce: TheNewerComesFirst, TheOlderGoesFirst, RecordsAreFetchedLater;
    SameEpoch: EpochIsDrawnAtOpen;
    NewRun: OpeningBeginsNoRun, RunNumberIsUsedAgain;
    ReopenKeeps: NewestIsLostAtOpen, StateIsLostAtOpen;
    ReopenFinished: EndsAreLostAtOpen;
    ReopenFloors: FloorsAreLostAtOpen;
    ReopenReplaces: KeysAreLostAtOpen, ReplacedComesBackAtOpen;
    ReopenRepeats: RepeatsAreLostAtOpen;
    OlderRun: OlderRunsAreForeign;
    OneRun: EachNodeHasALog;
    SharedView: HeadsAreOfOneNode, ReadsAreOfOneNode, EndsAreOfOneNode, RepeatsAreOfOneNode;
    Feed: ThereIsNoFeed, FeedEnds;
    FeedOrder: FeedGivesOneTwice, FeedIsOutOfOrder;
    FeedComplete: FeedLeavesOneOut, FeedIsOfOthersOnly;
    FeedRecords: FeedAltersBodies;
    FeedForgets: FeedDoesNotForget, FeedForgetsLate;
    FeedNotices: NoticesComeTwice, NoticesAreReversed, NoticesAreStored, NoticesLoseControl;
    OlderRunPast: OlderRunsAreGood, OlderRunsAreGoodUpToTheLast, OlderRunsAreGoodByOneMore;
}
